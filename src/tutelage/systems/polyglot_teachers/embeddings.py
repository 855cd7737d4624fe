"""Embeddings of texts by any encoder of ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tutelage.errors import InputError, MissingExtra
from tutelage.programs.generators.embedding import Embed


def transformers_embedding(name: str, batch_size: int = 32, max_length: int = 512) -> Embed:
    """The mean of an encoder's last hidden states over the real tokens: texts -> array [n, d]; needs the extra ``hf``.

    Args:
        name: of a model of ``transformers`` (a sentence encoder, say), or its folder.
        batch_size: texts at once.
        max_length: tokens of a text; the rest is cut.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: the model cannot be loaded.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = transformers.AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "give a folder with config.json, tokenizer and safetensors weights, or a name"
        raise InputError(f"cannot load: {str(error).strip().splitlines()[0]}", where=name, remedy=remedy) from error
    model.eval()
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError("the tokenizer has no padding and no end", where=name, remedy="set pad_token")
        tokenizer.pad_token = tokenizer.eos_token

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                list(texts[start : start + batch_size]), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
            ids, mask = batch["input_ids"], batch["attention_mask"]
            real = mask[..., None].float()
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            parts.append(((states * real).sum(1) / real.sum(1).clamp_min(1)).double().numpy())
        return np.concatenate(parts)

    return embed
