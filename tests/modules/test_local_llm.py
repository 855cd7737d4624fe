from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.errors import InputError
from tutelage.modules.local_llm import LocalLLM, LocalLLMSettings
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import GenerationRequest
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest
from tutelage.programs.generators.few_shot import Prompt, PromptBuilder
from tutelage.programs.generators.llm import LLMGenerator
from tutelage.programs.types import LimitExceeded, Signature

from .tiny_language_model import make_model

pytest.importorskip("transformers", reason="needs the extra `hf`")

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalLLM:
    return LocalLLM(LocalLLMSettings(str(folder), max_tokens=12, batch_size=3))


def ask(text: str, temperature: float = 0.0, seed: int | None = None) -> CompletionRequest:
    return CompletionRequest(Prompt("", (f"Question: {text}",)), temperature, seed)


def answers(model: LocalLLM, *asks: CompletionRequest) -> list[Any]:
    found = dict(model.complete(asks))
    return [found[number] for number in range(len(asks))]


def test_answers_do_not_depend_on_their_batch(model: LocalLLM) -> None:
    texts = ["a", "What color is the dog?", "b c", "d", "e " * 30]
    together = answers(model, *map(ask, texts))
    for text, answer in zip(texts, together, strict=True):
        (alone,) = answers(model, ask(text))
        assert alone.text == answer.text and alone.probability == pytest.approx(answer.probability, rel=1e-4)
        assert (alone.tokens_in, alone.tokens_out, alone.finish) == (answer.tokens_in, answer.tokens_out, answer.finish)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_probability_is_that_of_the_untempered_model(model: LocalLLM, temperature: float) -> None:
    asked = ask("Why?", temperature, None if temperature == 0 else 5)
    (answer,) = answers(model, asked)
    assert answer.finish == "length" and answer.tokens_out == 12
    tokenizer, network = model._tokenizer, model._model
    prompt = tokenizer(asked.prompt.text)["input_ids"]
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(5)
        ids = network.generate(**inputs, **how, max_new_tokens=12)[0]
        steps = network(ids[None]).logits[0, len(prompt) - 1 : -1].softmax(-1)
    assert tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True) == answer.text
    expected = steps.gather(1, ids[len(prompt) :, None]).mean().item()
    assert answer.probability == pytest.approx(expected, rel=1e-4) and 0 < expected < 1


def test_samples_come_from_their_seed_alone(model: LocalLLM) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, again = answers(model, *(ask("x", 1.0, seed) for seed in (1, 2, 1)))
    assert first == again and first.text != second.text
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_end_ends(tmp_path: Path) -> None:
    model = LocalLLM(LocalLLMSettings(str(make_model(tmp_path, silent=True))))
    (answer,) = answers(model, ask("x"))
    assert (answer.text, answer.finish, answer.tokens_out) == ("", "stop", 1)
    assert answer.probability == pytest.approx(1 / 257, rel=1e-4)


def test_what_follows_the_next_question_is_cut(model: LocalLLM) -> None:
    ids = model._tokenizer("A=1\nQuestion: more")["input_ids"]
    found = model._completion(ids, [0.5] * len(ids), 3)
    assert (found.text, found.finish) == ("A=1", "stop")


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path, folder: Path) -> None:
    talks = LocalLLM(LocalLLMSettings(str(make_model(tmp_path, template=TEMPLATE)), max_tokens=3))
    prompt = Prompt("be brief", ("Question: a",))
    assert talks._text(prompt) == "<system>be brief<end><user>Question: a<end><assistant>"
    assert len(answers(talks, CompletionRequest(prompt))) == 1
    quiet = LocalLLM(LocalLLMSettings(str(tmp_path), chat=False))
    assert quiet._text(prompt) == prompt.text and quiet.settings != talks.settings
    with pytest.raises(InputError, match="no chat template"):
        LocalLLM(LocalLLMSettings(str(folder), chat=True))
    broken = LocalLLM(LocalLLMSettings(str(make_model(tmp_path / "b", template="{{ raise_exception('no system role') }}"))))
    with pytest.raises(InputError, match="the chat template fails: no system role"):
        answers(broken, CompletionRequest(prompt))


def test_a_prompt_that_does_not_fit_fails_alone(model: LocalLLM) -> None:
    good, bad = answers(model, ask("x"), ask("y" * 5000))
    assert good.text and isinstance(bad, LimitExceeded) and "the model holds 4,096" in bad.message


def test_a_writer_writes_with_it_and_keeps_the_answers(folder: Path, model: LocalLLM, tmp_path: Path) -> None:
    signatures = {name: module.signature for name, module in symbolic_modules().items()} | {
        "VQA": Signature({"image": "image", "question": "text"}, "text")
    }
    for expected in (0, 4):
        writer = LLMGenerator(model, PromptBuilder(signatures, shots=1), cache=CompletionCache(tmp_path), temperature=1.0)
        drafts = writer.generate([GenerationRequest("What is it?"), GenerationRequest("What?", "viper")], 2)
        assert [len(of_one) for of_one in drafts] == [2, 2] and writer.usage.cached == expected
        assert {draft.source for of_one in drafts for draft in of_one} == {f"local:{folder}"}
    assert all(draft.failure is not None and draft.failure.kind == "limit" for of_one in drafts for draft in of_one)


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": '{"model_type": "llama"}'}])
def test_what_is_no_model_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="cannot load") as error:
        LocalLLM(LocalLLMSettings(str(tmp_path)))
    assert error.value.where == str(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    config = (folder / "config.json").read_text()
    mapped = '{"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}, "model_type": "own-kind",'
    (folder / "config.json").write_text(mapped + config.replace('"model_type": "llama"', '"was": 1').lstrip("{\n "))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot load"):
        LocalLLM(LocalLLMSettings(str(folder)))
    assert not (tmp_path / "ran").exists()
