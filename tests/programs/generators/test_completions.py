from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import StaleError
from tutelage.programs.generators.completions import Completion, CompletionCache, CompletionRequest, Usage, extract_program
from tutelage.programs.generators.few_shot import Prompt
from tutelage.programs.types import ParseFailure

VISPROG = "ANSWER0=VQA(image=IMAGE,question='Is it ``red``?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
VIPER = 'def execute_command(image):\n    """```"""\n    return "yes"'
ASK = CompletionRequest(Prompt("rules", ("Question: a",)))
LINES = st.text(st.characters(exclude_characters="`<\r"), max_size=60)


@pytest.mark.parametrize("text", [VISPROG, VIPER])
@pytest.mark.parametrize(
    "wrapped",
    [
        "{}",
        "\n\n{}\n\n",
        "Program:\n{}",
        "```\n{}\n```",
        "```python\n{}\n```",
        "Here it is:\n\n```visprog\n{}\n```\nI hope that helps.",
        "```python\n{}",
        "  ```python\n{}\n  ```",
        "<think>```\nwrong\n``` or so</think>\n```\n{}\n```",
        "```sh\nls\n```\n\n```python\n{}\n```\n```\nafter\n```",
    ],
)
def test_a_program_is_found_in_its_wrapping(text: str, wrapped: str) -> None:
    dsl = "viper" if text is VIPER else "visprog"
    assert extract_program(wrapped.format(text), dsl) == text
    assert extract_program(wrapped.format(text).replace("\n", "\r\n"), dsl) == text


@given(LINES, LINES)
def test_what_stands_round_a_fence_does_not_matter(before: str, after: str) -> None:
    assert extract_program(f"{before}\n```\n{VISPROG}\n```\n{after}", "visprog") == VISPROG


@given(st.text(st.sampled_from("`\nabc <think>/P:"), max_size=80), st.sampled_from(["visprog", "viper"]))
def test_any_text_unwraps_to_a_part_of_itself(text: str, dsl: str) -> None:
    assert len(extract_program(text, dsl)) <= len(text)


def test_a_thought_without_an_end_leaves_nothing() -> None:
    assert extract_program(f"<think>hm\n```\n{VISPROG}\n```", "visprog") == ""


def test_prose_is_left_as_it_is() -> None:
    assert extract_program("I am sorry, I cannot do that.", "viper") == "I am sorry, I cannot do that."


def test_responses_are_kept_by_settings_and_ask(tmp_path: Path) -> None:
    kept = CompletionCache(tmp_path)
    answer = Completion("A", "stop", 0.5, 10, None, "m")
    kept.put({"model": "m"}, ASK, answer)
    assert CompletionCache(tmp_path).get({"model": "m"}, ASK) == answer
    assert kept.get({"model": "n"}, ASK) is None
    for other in (
        ASK._replace(temperature=0.1),
        ASK._replace(seed=1),
        CompletionRequest(Prompt("rules", ("Question: b",))),
        CompletionRequest(Prompt("", ASK.prompt.turns)),
    ):
        assert kept.get({"model": "m"}, other) is None
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"asked": 1}', b"\xff"])
def test_a_damaged_entry_is_told_not_taken(tmp_path: Path, damage: bytes) -> None:
    kept = CompletionCache(tmp_path)
    kept.put({}, ASK, Completion("A"))
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    with pytest.raises(StaleError, match="not a kept response") as error:
        kept.get({}, ASK)
    assert error.value.where == file and "delete" in str(error.value.remedy)


def test_an_entry_for_another_ask_is_not_taken(tmp_path: Path) -> None:
    kept = CompletionCache(tmp_path)
    kept.put({}, ASK, Completion("A"))
    kept.put({}, ASK._replace(seed=1), Completion("B"))
    first, second = sorted(tmp_path.rglob("*.json"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(StaleError, match="another prompt"):
        kept.get({}, ASK), kept.get({}, ASK._replace(seed=1))


def test_usage_adds_up() -> None:
    usage = Usage()
    for answer in (Completion("A", tokens_in=10, tokens_out=5), Completion("B", tokens_in=10), ParseFailure("x")):
        usage.add(answer)
    assert usage == Usage(answers=2, failures=1, tokens_in=20, tokens_out=5, unreported=1)
    assert usage.cost(1e6, 2e6) == 30 and usage.cost(1.0, None) is None
