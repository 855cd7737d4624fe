"""What chat models share: the memory of a prompt is read once, and answers score as they do in whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `hf`")

import transformers

from tutelage.errors import InputError
from tutelage.modules import hf
from tutelage.modules.hf import base
from tutelage.modules.hf.generative_vqa import ChatDecoder, ChatVqa
from tutelage.modules.hf.vqa import VqaConfig
from tutelage.programs.types import Call

from . import tiny
from .cases import COLORS, QUESTIONS, calls, picture

CALLS = calls("VQA", question=QUESTIONS)


class Stand:
    """Qwen-VL's processor without its video part, which needs torchvision: patches of an image in a row, and a token for four."""

    chat_template = "one turn"

    def __init__(self) -> None:
        self.tokenizer = tiny.tokenizer("<image>", "<begin>", "<end>", "<video>", bos_token="[BOS]", eos_token="[EOS]")
        size = {"shortest_edge": 64, "longest_edge": 512}
        self.pictures = transformers.Qwen2VLImageProcessor(size=size, patch_size=4, merge_size=2, temporal_patch_size=2)

    def apply_chat_template(self, turns: Any, **_: Any) -> str:
        return f"<begin> <image> <end> {turns[0]['content'][1]['text']} answer :"

    def __call__(self, images: Any, text: list[str], **_: Any) -> dict[str, Any]:
        seen = self.pictures(images=images, return_tensors="pt")
        places = " ".join(["<image>"] * int(seen["image_grid_thw"].prod() // 4))
        ids = self.tokenizer(text[0].replace("<image>", places), return_tensors="pt")["input_ids"]
        words = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 6).long()}
        return {**seen, **words}


def qwen(config: VqaConfig) -> ChatVqa:
    stand = Stand()
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 1, 1]}
    ends = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 0, "vocab_size": len(stand.tokenizer)}
    text = tiny.TEXT | ends | {"hidden_size": 16, "num_key_value_heads": 2, "rope_scaling": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1}
    places = {"image_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8, "video_token_id": 9}
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **places)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4) if parameter.ndim > 1 else None
    return ChatVqa(config, ChatDecoder(model, config, stand.tokenizer, [5]), stand)


def whole_sequences(module: ChatVqa) -> torch.Tensor:
    """The log-probability of every answer to every call, each from one pass over prompt and answer without a memory."""
    network, table = module.network, []
    for call in CALLS:
        row = network.inputs(module.encode([call]))
        asked = row["input_ids"].shape[1]
        for ids in network.answers:
            ids = ids[ids >= 0]
            given = row | {"input_ids": torch.cat([row["input_ids"], ids[None]], 1)}
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            if "mm_token_type_ids" in row:
                given["mm_token_type_ids"] = (given["input_ids"] == 6).long()
            with torch.no_grad():
                said = network.model(**given, use_cache=False).logits[0, asked - 1 : -1].log_softmax(-1)
            table.append(said.gather(1, ids[:, None]).sum())
    return torch.stack(table).view(len(CALLS), -1)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_answers_score_as_in_whole_sequences(family: str, tmp_path: Path) -> None:
    config = VqaConfig(answers=COLORS, at_once=2)
    module = qwen(config) if family == "qwen" else hf.open_module("VQA", str(tiny.llava(tmp_path)), answers=COLORS, at_once=2)
    with torch.no_grad():
        scores = module.forward(module.encode(CALLS))["answer"]
    assert torch.allclose(scores, whole_sequences(module), atol=1e-4)


def test_images_of_several_patches_go_as_rows() -> None:
    module = qwen(VqaConfig(tokens=3))
    batch = module.encode(CALLS)
    assert batch["many/pixel_values"].ndim == 3 and len(batch["many/pixel_values"]) == 4
    together = module.run(CALLS)
    assert together.values == [module.run([call]).values[0] for call in CALLS]


def test_images_of_several_shapes_run_and_are_brought_to_one_for_a_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    module = qwen(VqaConfig(tokens=3))
    large = picture(8, 30, 12)
    mixed = [*CALLS, Call("VQA", {"image": large, "question": "is it red ?"})]
    assert module.run(mixed).values[:4] == module.run(CALLS).values
    for in_memory in (base.IN_MEMORY, 0):
        monkeypatch.setattr(base, "IN_MEMORY", in_memory)
        with pytest.raises(InputError, match="images become inputs many/pixel_values of shapes") as error:
            module.training_examples(mixed, None)
        assert "square=N" in str(error.value)
    assert len(qwen(VqaConfig(tokens=3, square=16)).training_examples(mixed, None)) == 5


def test_an_answer_ends_at_its_end(tmp_path: Path) -> None:
    module = hf.open_module("VQA", str(tiny.llava(tmp_path)), tokens=3)
    ids = torch.tensor([[7, 5, 9], [8, 9, 10], [5, 7, 7]])
    assert module.network.cut(ids).tolist() == [[7, 5, -100], [8, 9, 10], [5, -100, -100]]
    logits = torch.full((3, 3, 40), -20.0).scatter_(2, ids[..., None], 20.0)
    said = module.decode({"tokens": logits}, CALLS[:3])
    assert said.values[2] == "" and len(said.values[1].split()) == 3
    assert [sum(dist.values()) for dist in said.distributions] == pytest.approx([1, 1, 1])


def test_a_model_that_does_not_chat_is_refused(tmp_path: Path) -> None:
    folder = tiny.llava(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="a llava model without a chat template"):
        hf.open_module("VQA", str(folder))
