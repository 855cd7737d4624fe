"""A causal language model of transformers on this machine, as what a program writer asks.

Needs the extra ``hf``. It lives among the modules, not among the writers, because it needs torch, which programs do not
know. Code that comes with a model is never run, and weights are read from safetensors alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InputError, MissingExtra
from tutelage.programs.generators.completions import Completion, CompletionRequest
from tutelage.programs.generators.few_shot import STOP, Prompt
from tutelage.programs.types import LimitExceeded, ProgramFailure
from tutelage.storage import fingerprint


@dataclass(frozen=True)
class LocalLLMSettings:
    """Which model, and how it is asked.

    Args:
        model: a folder, or a name that transformers resolves.
        max_tokens: of one answer.
        batch_size: greedy answers that are made together; sampled ones are made one by one, each from its own seed.
        chat: ask in turns; None: where the model has a template for them, else as one text to go on with.
        device: where it runs.
    """

    model: str
    max_tokens: int = 512
    batch_size: int = 8
    chat: bool | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} is below 1", where=name, remedy="give a positive number")


class LocalLLM:
    """A language model on this machine; greedy answers, or samples from the whole distribution at a temperature.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: the model cannot be loaded, or is to chat and has no template for it.
    """

    def __init__(self, settings: LocalLLMSettings):
        try:
            import transformers
        except ImportError:
            raise MissingExtra("transformers", "hf") from None
        self.options = settings
        try:
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                settings.model, trust_remote_code=False, padding_side="left"
            )
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                settings.model, trust_remote_code=False, use_safetensors=True, dtype="auto"
            )
            self._model = model.to(settings.device).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            message = f"cannot load: {str(error).strip().splitlines()[0]}"
            remedy = "give a folder with config.json, tokenizer and safetensors weights, or a name"
            raise InputError(message, where=settings.model, remedy=remedy) from error
        self._transformers, self._tokenizer = transformers, tokenizer
        self._chat = bool(tokenizer.chat_template) if settings.chat is None else settings.chat
        if self._chat and not tokenizer.chat_template:
            raise InputError("the model has no chat template", where=settings.model, remedy="chat = false")
        ends = self._model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if tokenizer.eos_token_id is not None:
            ends.append(tokenizer.eos_token_id)
        self._ends = sorted(set(ends))
        if tokenizer.pad_token_id is None:
            if not self._ends:
                raise InputError("the tokenizer has no end and no padding", where=settings.model, remedy="set eos_token")
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self._ends[0])

    @property
    def name(self) -> str:
        """local, and the model's own name."""
        return f"local:{self.options.model}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What changes its answers; a folder's files by their names, sizes and times."""
        folder = Path(self.options.model)
        files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.glob("*")) if folder.is_dir() else []
        version = fingerprint(files) if files else str(getattr(self._model.config, "_commit_hash", None))
        kept = {"model": self.options.model, "version": version, "max_tokens": self.options.max_tokens, "chat": self._chat}
        return {"kind": "local"} | kept

    def complete(self, asks: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        """Answer all, the greedy ones first; a prompt that does not fit the model fails alone."""
        texts = [self._text(ask.prompt) for ask in asks]
        tokens = [self._tokenizer(text, add_special_tokens=not self._chat)["input_ids"] for text in texts]
        room = getattr(self._model.config, "max_position_embeddings", None)
        greedy, sampled = list[int](), list[int]()
        for number, (ask, ids) in enumerate(zip(asks, tokens, strict=True)):
            if room is not None and len(ids) + self.options.max_tokens > room:
                message = f"a prompt of {len(ids):,} tokens and an answer of {self.options.max_tokens:,}; the model holds {room:,}"
                yield number, LimitExceeded(message, where=self.options.model, remedy="show fewer examples, or allow fewer tokens")
            else:
                (sampled if ask.temperature > 0 else greedy).append(number)
        greedy.sort(key=lambda number: len(tokens[number]))
        size = self.options.batch_size
        for batch in [greedy[start : start + size] for start in range(0, len(greedy), size)] + [[number] for number in sampled]:
            first = asks[batch[0]]
            answers = self._generate([tokens[number] for number in batch], first.temperature, first.seed)
            yield from zip(batch, answers, strict=True)

    def _text(self, prompt: Prompt) -> str:
        if not self._chat:
            return prompt.text
        try:
            made = self._tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises what it likes
            raise InputError(f"the chat template fails: {error}", where=self.options.model, remedy="chat = false") from error
        return str(made)

    def _generate(self, prompts: list[list[int]], temperature: float, seed: int | None) -> list[Completion]:
        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.options.device)
        confidence = _TokenProbabilities()
        config = self._transformers.GenerationConfig(
            max_new_tokens=self.options.max_tokens,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            num_beams=1,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=self._ends or None,
        )
        stops: dict[str, Any] = {} if self._chat else {"stop_strings": list(STOP), "tokenizer": self._tokenizer}
        devices = [] if self.options.device == "cpu" else [self.options.device]
        with torch.random.fork_rng(devices), torch.no_grad():
            if seed is not None:
                torch.manual_seed(seed)
            whole = self._model.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                generation_config=config,
                logits_processor=[confidence],
                **stops,
            )
        written = whole[:, padded["input_ids"].shape[1] :]
        return [
            self._completion(row, chosen, len(prompt))
            for row, chosen, prompt in zip(written.tolist(), confidence.of(written).tolist(), prompts, strict=True)
        ]

    def _completion(self, ids: list[int], probabilities: list[float], prompt: int) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        kept = ids if end is None else ids[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        stopped = -1 if self._chat else min((place for stop in STOP if (place := text.find(stop)) >= 0), default=-1)
        count = len(ids) if end is None else end + 1
        known = probabilities[:count]
        return Completion(
            text if stopped < 0 else text[:stopped],
            "length" if end is None and stopped < 0 else "stop",
            sum(known) / len(known) if known else None,
            prompt,
            count,
            self.options.model,
        )


class _TokenProbabilities:
    """A logits processor that changes nothing and keeps the probability of each token that was then chosen."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._chosen = list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._take(input_ids[:, -1])
        self._last = scores.float().softmax(-1)
        return scores

    def of(self, written: Tensor) -> Tensor:
        """The probabilities [B, T] of the tokens ``written`` [B, T]."""
        self._take(written[:, -1])
        self._last = None
        return torch.stack(self._chosen, 1)

    def _take(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._chosen.append(self._last.gather(1, tokens[:, None])[:, 0])
