"""VQA from models that write: BLIP-2, InstructBLIP, and any chat model that reads an image beside text."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.modules.hf.base import ModelInputs, drop_batch_dim
from tutelage.modules.hf.vqa import AnswerScorer, HfVqa, Prompt, VqaConfig
from tutelage.programs.types import Call


class ChatVqa(HfVqa):
    """Any model of ``AutoModelForImageTextToText`` whose processor has a chat template; families with a class of their own
    go there."""

    question: ClassVar = "{question} Answer with one word or a short phrase."

    @classmethod
    def supports(cls, family: str) -> bool:
        """Every image-text-to-text model."""
        from tutelage.modules.hf.loading import transformers

        transformers()
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

        return family in known

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """AutoModelForImageTextToText."""
        return kit.AutoModelForImageTextToText

    @classmethod
    def build_network(cls, config: VqaConfig, model: Any, processor: Any) -> nn.Module:
        """The model, asked in turns.

        Raises:
            InputError: the processor has no chat template, or its tokenizer no end.
        """
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"a {model.config.model_type} model without a chat template", where=config.source, remedy="choose a chat model"
            )
        return ChatDecoder(model, config, processor.tokenizer, ends_of(model, processor.tokenizer, config))

    def row(self, call: Call) -> ModelInputs:
        """One turn: the image, then the question."""
        text = (self.config.prompt or self.question).format(question=call.args["question"])
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        own_text = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        images = [self.config.resize_with_padding(call.args["image"])]
        return drop_batch_dim(self.processor(images=images, text=[own_text], return_tensors="pt", add_special_tokens=False))

    def padding(self, name: str) -> tuple[str, int]:
        """On the left, for the answer follows on the right."""
        return "left", self.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0


class ChatDecoder(AnswerScorer):
    """A decoder that holds image and question in its memory of keys and values."""

    def prompt(self, inputs: Mapping[str, Tensor]) -> Prompt:
        """One pass over the prompt."""
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        out = self.model(**inputs, **last, use_cache=True)
        off = getattr(getattr(self.model, "model", None), "rope_deltas", None)
        return Prompt(out.logits[:, -1], out.past_key_values, inputs["attention_mask"], off)

    def decoder(self) -> Any:
        """What goes on from the memory."""
        return self.model

    def continuation_logits(self, prompt: Prompt, ids: Tensor, answers: int) -> Tensor:
        """The prompt's own logits for the first token, one pass for the others."""
        assert prompt.following is not None
        first = prompt.following.repeat_interleave(answers, 0)[:, None]
        if ids.shape[1] == 1:
            return first
        mask = torch.cat([prompt.mask.repeat_interleave(answers, 0), torch.ones_like(ids[:, :-1])], 1)
        placed = {}
        if prompt.off is not None:
            counted = mask.cumsum(1)[:, 1 - ids.shape[1] :] - 1
            placed["position_ids"] = (counted + prompt.off.repeat_interleave(answers, 0)).expand(3, -1, -1)
        cache = repeated(prompt.memory, answers)
        out = self.decoder()(input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=True, **placed)
        return torch.cat([first, out.logits], 1)


def repeated(memory: Any, times: int) -> Any:
    """A copy of a cache with each row ``times`` over; the tensors of the original stay as they are."""
    copied = copy.copy(memory)
    copied.layers = [copy.copy(layer) for layer in memory.layers]
    copied.batch_repeat_interleave(times)
    return copied


class Blip2(HfVqa):
    """BLIP-2 and InstructBLIP: a few queries look at the image, a language model, with or without an encoder, answers."""

    families = ("blip-2", "instructblip")

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """AutoModelForImageTextToText."""
        return kit.AutoModelForImageTextToText

    @classmethod
    def build_network(cls, config: VqaConfig, model: Any, processor: Any) -> nn.Module:
        """By the kind of language model."""
        ends = ends_of(model.language_model, processor.tokenizer, config)
        kind = QFormerDecoder if model.config.use_decoder_only_language_model else QFormerEncoderDecoder
        lead = " " if model.config.model_type == "blip-2" else ""  # the answer goes on after "Answer:"
        return kind(model, config, processor.tokenizer, ends, lead)

    def row(self, call: Call) -> ModelInputs:
        """BLIP-2 is asked "Question: … Answer:", InstructBLIP the question itself, as they were trained."""
        instructed = self.network.model.config.model_type == "instructblip"
        template = self.config.prompt or ("{question}" if instructed else "Question: {question} Answer:")
        text = template.format(question=call.args["question"])
        return drop_batch_dim(
            self.processor(images=self.config.resize_with_padding(call.args["image"]), text=text, return_tensors="pt")
        )

    def padding(self, name: str) -> tuple[str, int]:
        """On the left where the answer follows the question's own tokens."""
        if name.startswith("qformer") or not self.network.model.config.use_decoder_only_language_model:
            return "right", 0
        return "left", self.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0


class QFormerDecoder(ChatDecoder):
    """The image's queries stand before the question in the text of a decoder."""

    def prompt(self, inputs: Mapping[str, Tensor]) -> Prompt:
        """One pass over image and question."""
        mask = inputs["attention_mask"]
        out = self.model.language_model(inputs_embeds=embedded(self.model, inputs), attention_mask=mask, use_cache=True)
        return Prompt(out.logits[:, -1], out.past_key_values, mask)

    def decoder(self) -> Any:
        """The language model: the image is in its memory."""
        return self.model.language_model


class QFormerEncoderDecoder(AnswerScorer):
    """The image's queries stand before the question in the text of an encoder."""

    def prompt(self, inputs: Mapping[str, Tensor]) -> Prompt:
        """The encoder's states."""
        mask = inputs["attention_mask"]
        encoder = self.model.language_model.get_encoder()
        return Prompt(None, encoder(inputs_embeds=embedded(self.model, inputs), attention_mask=mask).last_hidden_state, mask)

    def continuation_logits(self, prompt: Prompt, ids: Tensor, answers: int) -> Tensor:
        """One pass of the decoder."""
        language = self.model.language_model
        start = torch.full_like(ids[:, :1], language.config.decoder_start_token_id)
        out = language(
            encoder_outputs=(prompt.memory.repeat_interleave(answers, 0),),
            attention_mask=prompt.mask.repeat_interleave(answers, 0),
            decoder_input_ids=torch.cat([start, ids[:, :-1]], 1),
            use_cache=False,
        )
        return out.logits


def embedded(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The prompt's embeddings [B, L, D] with the image's queries in their places."""
    looked = {name: value for name, value in inputs.items() if name == "pixel_values" or name.startswith("qformer")}
    queries = model.get_image_features(**looked, return_dict=True).pooler_output
    words = model.get_input_embeddings()(inputs["input_ids"])
    return words.masked_scatter(model.get_placeholder_mask(inputs["input_ids"], words), queries.to(words.dtype))


def ends_of(model: Any, tokenizer: Any, config: VqaConfig) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first.

    Raises:
        InputError: there is none.
    """
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *([known] if isinstance(known, int) else known or [])]
    found = list(dict.fromkeys(end for end in ends if end is not None))
    if not found:
        raise InputError("no token ends an answer", where=config.source, remedy="set eos_token of the tokenizer")
    return found
