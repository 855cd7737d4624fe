"""Language models as students, bases and measures of fluency: a tiny one trained in place, or any of ``transformers``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, MissingExtra
from tutelage.networks.causal_lm import CausalLM, TokenBatch, join_prompts, token_log_probs
from tutelage.seeds import derive
from tutelage.systems.polyglot_teachers.metrics import response_perplexities
from tutelage.systems.polyglot_teachers.rows import Row, TestItem

PUBLISHED = TrainingSettings(epochs=2, lr=5e-5, schedule="linear", warmup=5, weight_decay=1e-3, batch_size=8, seed=3407)
"""The published fine-tuning of a student: all weights, two epochs."""
PAD, END, BEGIN, UNKNOWN = range(4)


@dataclass
class TextModel:
    """A causal language model with its tokenizer.

    Attributes:
        network: (ids [B, L], mask [B, L]) -> logits [B, L, V] of the next token.
        encode_prompt: a prompt as token ids, at least one.
        encode: a response as token ids, without its end.
        end: the id that ends a response.
        max_length: longest sequence; longer ones are cut at their end in training.
        pad: the id behind the end.
    """

    network: nn.Module
    encode_prompt: Callable[[str], list[int]]
    encode: Callable[[str], list[int]]
    end: int
    max_length: int = 16_384
    pad: int = 0

    def batch(self, prompts: Sequence[str], responses: Sequence[str], ended: bool = True) -> TokenBatch:
        """Token ids of prompts and responses; ``ended``: the end counts as a token of the response."""
        ends = [self.end] if ended else []
        heads = [self.encode_prompt(prompt) for prompt in prompts]
        tails = [[*self.encode(text), *ends] for text in responses]
        batch = join_prompts(heads, tails, self.pad)
        cut = slice(0, self.max_length)
        return TokenBatch(batch.ids[:, cut], batch.mask[:, cut], batch.response[:, cut])

    @torch.no_grad()
    def scored(
        self,
        score: Callable[[Tensor, TokenBatch], Tensor],
        prompts: Sequence[str],
        responses: Sequence[str],
        ended: bool = True,
        batch_size: int = 64,
    ) -> Tensor:
        """``score(logits, batch)`` [N] of all pairs, in eval mode."""
        training, parts = self.network.training, []
        device = next(self.network.parameters()).device
        self.network.eval()
        try:
            for start in range(0, len(prompts), batch_size):
                rows = slice(start, start + batch_size)
                own = self.batch(prompts[rows], responses[rows], ended)
                batch = TokenBatch(own.ids.to(device), own.mask.to(device), own.response.to(device))
                parts.append(score(self.network(batch.ids, batch.mask), batch).cpu())
        finally:
            self.network.train(training)
        return torch.cat(parts)

    def perplexities(self, rows: Sequence[Row], batch_size: int = 64) -> list[float]:
        """The perplexity of each row's response given its prompt."""
        prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
        return self.scored(response_perplexities, prompts, responses, ended=False, batch_size=batch_size).double().tolist()

    def accuracy(self, items: Sequence[TestItem], batch_size: int = 64) -> float:
        """The share of right answers in 0..1; see :class:`~tutelage.systems.polyglot_teachers.rows.TestItem`.

        Raises:
            InputError: no item.
        """
        if not items:
            raise InputError("no question", where="test items", remedy="give at least one for each language")
        texts = [(item, text) for item in items for text in (item.choices or (item.response,))]
        prompts, responses = [item.prompt for item, _ in texts], [text for _, text in texts]
        scores = iter(self.scored(_scores, prompts, responses, batch_size=batch_size).tolist())
        right = 0
        for item in items:
            if item.choices:
                means = {text: next(scores)[0] for text in item.choices}
                right += max(means, key=means.__getitem__) == item.response
            else:
                right += bool(next(scores)[1])
        return right / len(items)

    def tuned(self, rows: Sequence[Row], settings: TrainingSettings = PUBLISHED) -> TextModel:
        """A copy that is fine-tuned on rows: cross-entropy on the responses' tokens and their end.

        Raises:
            InputError: no row.
        """
        if not rows:
            raise InputError("no row to train on", where="rows", remedy="give at least one")
        batch = self.batch([row.prompt for row in rows], [row.response for row in rows])
        labels = batch.ids.masked_fill(~batch.response, -100)
        data = TensorData({"ids": batch.ids, "mask": batch.mask}, labels)
        network = copy.deepcopy(self.network)
        job = TrainingJob(network, None, Supervised(), data, settings, "student", task="language-modelling")
        return replace(self, network=train(job).student)


def _scores(logits: Tensor, batch: TokenBatch) -> Tensor:
    """[B, 2]: the mean log-probability of a response's tokens, and whether each of them is the likeliest in its place: then,
    and only then, greedy decoding gives the response."""
    logs = token_log_probs(logits.float(), batch.ids) * batch.response
    greedy = nn.functional.pad(logits[:, :-1].argmax(-1), (1, 0), value=-1)
    exact = ((greedy == batch.ids) | ~batch.response).all(1)
    return torch.stack([logs.sum(1) / batch.response.sum(1).clamp_min(1), exact.float()], 1)


def tiny_text_model(words: Sequence[str], seed: int, dim: int = 32, depth: int = 1, num_heads: int = 4) -> TextModel:
    """An untrained :class:`~tutelage.networks.causal_lm.CausalLM` with a token for each of ``words``, split at blanks.

    Raises:
        InputError: no word.
    """
    if not words:
        raise InputError("no word", where="words", remedy="give the vocabulary")
    ids = {word: place for place, word in enumerate(dict.fromkeys(words), UNKNOWN + 1)}

    def encode(text: str) -> list[int]:
        return [ids.get(word, UNKNOWN) for word in text.split()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "tiny text model"))
        network = CausalLM(len(ids) + UNKNOWN + 1, dim, depth, num_heads)
    return TextModel(network, lambda prompt: [BEGIN, *encode(prompt)], encode, END, pad=PAD)


class _TransformersNetwork(nn.Module):
    """A causal model of ``transformers``: (ids, mask) -> logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Next-token logits [B, L, V]."""
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).logits
        return logits


def transformers_text_model(name: str, max_length: int = 16_384) -> TextModel:
    """A causal language model of ``transformers``, by name or folder; needs the extra ``hf``.

    A prompt is put into the model's chat template where it has one; else a line break follows it. Code that comes with a
    model is never run, and weights are read from safetensors alone.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: the model cannot be loaded, or has no token that ends a text.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "give a folder with config.json, tokenizer and safetensors weights, or a name"
        raise InputError(f"cannot load: {str(error).strip().splitlines()[0]}", where=name, remedy=remedy) from error
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no token that ends a text", where=name, remedy="set eos_token")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(prompt: str) -> list[int]:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            return encode(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [start, *encode(f"{prompt}\n")]

    room = min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)
    return TextModel(_TransformersNetwork(model), encode_prompt, encode, tokenizer.eos_token_id, room, tokenizer.pad_token_id or 0)
