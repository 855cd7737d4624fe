"""VQA from transformers models: what all of them share, and the two that were made for it, ViLT and BLIP.

A closed set of answers is scored whole: the log-probability of every answer, its end included, given image and question,
which are read once. So the softmax over the set is the model's own distribution, given that the answer is one of them.
Without a set the answer is written token by token, the most probable first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import InputError, did_you_mean
from tutelage.modules.hf.base import HfModule, HfNetwork, ModelInputs, ResizedConfig, drop_batch_dim
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.programs.types import Call, Capabilities, ModuleOutputs, Signature

PAD = -100
"""Where an answer has no token."""


@dataclass(frozen=True)
class VqaConfig(ResizedConfig):
    """``answers``: the closed set, none: open. ``tokens``: of an open answer at most. ``prompt``: the question as the model
    is asked it; empty: as its family is. ``lead``: what stands before an answer in the model's text. ``at_once``: answers
    scored together."""

    answers: tuple[str, ...] = ()
    tokens: int = 10
    prompt: str = ""
    lead: str = ""
    at_once: int = 64


class HfVqa(HfModule):
    """VQA(image, question) -> an answer; open ones are taught token by token, closed ones as classes."""

    name = "VQA"
    signature = Signature({"image": "image", "question": "text"}, "text")
    Config = VqaConfig
    network: Any
    question: ClassVar = "{question}"

    def __init__(self, config: VqaConfig, network: nn.Module, processor: Any):
        super().__init__(config, network, processor)
        self.answers = self.network.names
        self.heads = {"answer": "classes"} if self.answers else {"tokens": "tokens"}  # type: ignore[misc]
        self.capabilities = Capabilities(vocabulary=self.answers or None)

    def row(self, call: Call) -> ModelInputs:
        """The image and the question as the processor gives them."""
        text = (self.config.prompt or self.question).format(question=call.args["question"])
        return drop_batch_dim(
            self.processor(images=self.config.resize_with_padding(call.args["image"]), text=text, return_tensors="pt")
        )

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Closed: classes. Open: ``written`` [N, T], the label's tokens, is an input, and the head's target ``tokens``; a
        replayed call is asked for what the module itself writes."""
        if self.answers:
            return super().training_examples(calls, labels)
        inputs = self.encode(calls)
        if labels is None:
            label_ids = []
            with torch.no_grad():
                for at in range(0, len(calls), self.config.rows):  # the logits of all at once would fill the memory
                    heads = self.forward({key: value[at : at + self.config.rows] for key, value in inputs.items()})
                    label_ids += self.network.cut(heads["tokens"].argmax(-1)).tolist()
            return TrainingExamples(inputs | {"written": padded_answers(label_ids)}, {}, torch.ones(len(calls)))
        network: AnswerScorer = self.network
        label_ids = [answer_ids(self.processor.tokenizer, network.lead + str(label.value), network.end) for label in labels]
        written = padded_answers(label_ids)
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)
        return TrainingExamples(inputs | {"written": written}, {"tokens": {"tokens": written}}, weights)

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """The most probable answer with the probabilities of all; or what was written, with its own probability."""
        if self.answers:
            dists: list[dict[str, float] | None] = [
                dict(zip(self.answers, row, strict=True)) for row in heads["answer"].float().softmax(1).tolist()
            ]
            return ModuleOutputs([max(dist, key=dist.__getitem__) for dist in dists if dist], dists, None, heads)
        sure, ids = heads["tokens"].float().softmax(-1).max(-1)
        kept = self.network.cut(ids)
        shares = sure.masked_fill(kept == PAD, 1.0).prod(1).tolist()
        ends = self.network.ends
        texts = [[token for token in row if token != PAD and token not in ends] for row in kept.tolist()]
        values = [self.processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in texts]
        return ModuleOutputs(values, [{value: share} for value, share in zip(values, shares, strict=True)], None, heads)


class Vilt(HfVqa):
    """ViLT: a classifier over the answers it was trained on; ``answers`` may be some of them."""

    families = ("vilt",)

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """ViltForQuestionAnswering."""
        return kit.ViltForQuestionAnswering

    @classmethod
    def build_network(cls, config: VqaConfig, model: Any, processor: Any) -> nn.Module:
        """The classifier.

        Raises:
            InputError: an answer that it does not know.
        """
        known = [model.config.id2label[i] for i in range(len(model.config.id2label))]
        for answer in config.answers:
            if answer not in known:
                raise InputError(f"{answer!r} is no answer of the model", where="answers", remedy=did_you_mean(answer, known))
        return ViltNetwork(model, config.answers or tuple(known), [known.index(answer) for answer in config.answers])


class ViltNetwork(HfNetwork):
    """ViLT's logits [B, A] of the chosen answers, or of all."""

    def __init__(self, model: Any, names: tuple[str, ...], chosen: Sequence[int]):
        super().__init__(model)
        self.names = names
        self.register_buffer("chosen", torch.tensor(chosen) if chosen else None, persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixel_values``, ``input_ids`` and their masks -> ``answer``."""
        logits = self.model(**self.inputs(batch)).logits
        return {"answer": logits if self.chosen is None else logits[:, self.chosen]}


class Prompt(NamedTuple):
    """Image and question as a model has read them: the logits [B, V] of what comes next (None: nothing has been said to the
    decoder yet), its memory, the mask [B, L] of what of it is real, and, where positions are not counted by tokens (an image
    takes fewer in Qwen-VL), how far they are off [B, 1]."""

    following: Tensor | None
    memory: Any
    mask: Tensor
    off: Tensor | None = None


class AnswerScorer(HfNetwork):
    """A model that writes answers: their scores [B, A], or the logits of each token [B, T, V] of one.

    A subclass reads the :meth:`prompt` and says how answers are :meth:`continuation_logits`.
    """

    def __init__(self, model: Any, config: VqaConfig, tokenizer: Any, ends: Sequence[int], lead: str = ""):
        super().__init__(model)
        self.names, self.max_tokens, self.at_once = tuple(config.answers), config.tokens, config.at_once
        self.ends, self.end, self.lead = frozenset(ends), ends[0], config.lead or lead
        answer_tokens = [answer_ids(tokenizer, self.lead + answer, self.end) for answer in self.names]
        self.register_buffer("answers", padded_answers(answer_tokens) if answer_tokens else None, persistent=False)

    def prompt(self, inputs: Mapping[str, Tensor]) -> Prompt:
        """Read image and question, once."""
        raise NotImplementedError

    def continuation_logits(self, prompt: Prompt, ids: Tensor, answers: int) -> Tensor:
        """Logits [B * answers, T, V] of each token of ``ids`` [B * answers, T], ``answers`` of them to a prompt; those at t
        depend on the tokens before t alone."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the processor and, where answers are open, ``written`` [B, T] (padded with -100; without it, what the
        model itself writes) -> ``answer`` [B, A] or ``tokens`` [B, T, V]."""
        given = self.inputs(batch)
        written = given.pop("written", None)
        prompt = self.prompt(given)
        if self.answers is not None:
            return {"answer": self.scored(prompt)}
        if written is None:
            with torch.no_grad():
                written = self.greedy(prompt)
        return {"tokens": self.continuation_logits(prompt, written.clamp(min=0), 1)}

    def scored(self, prompt: Prompt) -> Tensor:
        """The log-probability [B, A] of each answer with its end."""
        rows, parts = len(prompt.mask), []
        for ids in self.answers.split(self.at_once):
            token_ids = ids.repeat(rows, 1)
            logits = self.continuation_logits(prompt, token_ids.clamp(min=0), len(ids)).float()
            lost = F.cross_entropy(logits.transpose(1, 2), token_ids, ignore_index=PAD, reduction="none")
            parts.append(-lost.sum(1).view(rows, len(ids)))
        return torch.cat(parts, 1)

    def greedy(self, prompt: Prompt) -> Tensor:
        """The most probable token after the other, int64 [B, T], until all answers have ended."""
        written = prompt.mask.new_zeros(len(prompt.mask), 0, dtype=torch.long)
        for _ in range(self.max_tokens):
            room = F.pad(written, (0, 1))
            written = torch.cat([written, self.continuation_logits(prompt, room, 1)[:, -1:].argmax(-1)], 1)
            if (self.cut(written)[:, -1] == PAD).all() or self._ended(written).any(1).all():
                break
        return written

    def cut(self, ids: Tensor) -> Tensor:
        """``ids`` [B, T] with what comes after the first end replaced by -100."""
        ended = self._ended(ids)
        return ids.masked_fill((ended.cumsum(1) - ended.long()) > 0, PAD)

    def _ended(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(sorted(self.ends), device=ids.device))


class Blip(HfVqa):
    """BLIP's own VQA model: a question encoder that looks at the image, and an answer decoder."""

    families = ("blip",)

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """BlipForQuestionAnswering."""
        return kit.BlipForQuestionAnswering

    @classmethod
    def build_network(cls, config: VqaConfig, model: Any, processor: Any) -> nn.Module:
        """The three parts."""
        return BlipNetwork(model, config, processor.tokenizer, [model.config.text_config.sep_token_id])


class BlipNetwork(AnswerScorer):
    """BLIP: the decoder attends to the question as the encoder read it beside the image."""

    def prompt(self, inputs: Mapping[str, Tensor]) -> Prompt:
        """The encoder's states [B, L, D]."""
        model, mask = self.model, inputs["attention_mask"]
        seen = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        read = model.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        )
        return Prompt(None, read.last_hidden_state, mask)

    def continuation_logits(self, prompt: Prompt, ids: Tensor, answers: int) -> Tensor:
        """One pass of the decoder for each length of question: its attention to the question knows no mask (transformers
        5.23 gives it under a name that is not read), so padding must not be there at all."""
        decoder_ids = F.pad(ids[:, :-1], (1, 0), value=self.model.decoder_start_token_id).unflatten(0, (-1, answers))
        lengths = prompt.mask.sum(1)
        order, parts = [], []
        for length in lengths.unique():
            rows = (lengths == length).nonzero()[:, 0]
            memory = prompt.memory[rows, : int(length)].repeat_interleave(answers, 0)
            out = self.model.text_decoder(input_ids=decoder_ids[rows].flatten(0, 1), encoder_hidden_states=memory, use_cache=False)
            order.append(rows)
            parts.append(out.logits.unflatten(0, (-1, answers)))
        return torch.cat(parts)[torch.cat(order).argsort()].flatten(0, 1)


def answer_ids(tokenizer: Any, text: str, end: int) -> list[int]:
    """An answer's tokens and its end."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], end]


def padded_answers(rows: Sequence[Sequence[int]]) -> Tensor:
    """Tokens of answers, int64 [A, T], padded with -100."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
