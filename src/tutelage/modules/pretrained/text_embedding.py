"""Texts as vectors: all-MiniLM-L6-v2 (asset ``minilm``; needs the extra ``hf``).

Source: Wang et al., "MiniLM", NeurIPS 2020; the sentence-transformers model of that name: the mean of the last layer over a
text's tokens, brought to length one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tutelage import assets, storage
from tutelage.errors import MissingExtra

ASSET = "minilm"
LONGEST = 128
"""Tokens of a text that are read."""


class TextEmbedding:
    """``embed(texts)`` -> float32 [N, 384], rows of length one. The network is loaded when it is first needed."""

    @property
    def version(self) -> str:
        """The hash of the weights' file."""
        return assets.asset(ASSET).files["model.safetensors"].sha256[:16]

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The tokenizer and the network.

        Raises:
            MissingExtra: transformers is not installed.
            AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
        """
        try:
            from tokenizers import Tokenizer
            from transformers import BertConfig, BertModel
        except ImportError:
            raise MissingExtra("transformers", "hf") from None
        tokenizer = Tokenizer.from_str(assets.read(ASSET, "tokenizer.json").decode())
        tokenizer.enable_truncation(LONGEST)
        tokenizer.enable_padding(pad_id=0)
        network = BertModel(BertConfig(**json.loads(assets.read(ASSET, "config.json"))), add_pooling_layer=False)
        state = load_tensors(assets.read(ASSET, "model.safetensors"))
        state = {key: value for key, value in state.items() if not key.startswith("pooler.") and key != "embeddings.position_ids"}
        network.load_state_dict(state)
        return tokenizer, network.eval()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """One row a text.

        Raises:
            MissingExtra, AssetAbsent, WrongHash: see :meth:`_shards`.
        """
        tokenizer, network = self._parts
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                read = tokenizer.encode_batch(list(texts[start : start + 64]))
                ids, mask = (torch.tensor([getattr(it, name) for it in read]) for name in ("ids", "attention_mask"))
                last = network(input_ids=ids, attention_mask=mask).last_hidden_state
                rows.append((last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.nn.functional.normalize(torch.cat(rows), dim=1)

    def cached(self, texts: Sequence[str]) -> Tensor:
        """As :meth:`embed`, from the store where these texts have been embedded before: for long lists that stay."""
        store = storage.ContentStore(storage.cache_home() / "embeddings")
        key = storage.fingerprint(self.version, list(texts))
        data = store.get(key, ".safetensors")
        if data is None:
            data = save_tensors({"rows": self.embed(texts)})
            store.put(key, data, ".safetensors")
        return load_tensors(data)["rows"]
