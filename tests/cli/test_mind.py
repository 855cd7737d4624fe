"""`tutelage mind`: from questions to a trained student, against a stub endpoint and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli import main

from ..modules.tiny_language_model import make_model
from ..programs.generators.stub_server import said, serving

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))


def tutelage(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["mind", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def questions(path: Path) -> Path:
    path.write_text("".join(json.dumps({"question": f"{n} + 1", "answer": str(n + 1)}) + "\n" for n in range(2)))
    return path


def at(url: str) -> list[str]:
    return ["--set", f"endpoint.url={url}", "--set", "endpoint.model=stub", "--set", "endpoint.attempts=1"]


def test_from_questions_to_a_student(tmp_path: Path) -> None:
    given, out = questions(tmp_path / "questions.jsonl"), tmp_path / "items.jsonl"
    with serving(lambda asked, number: said("add\n#### 1")) as server:
        code, shown, err = tutelage("collect", given, "--out", out, *at(server.url))
    assert code == 0 and "1 of 2 items" in shown and "wrong answer" in shown, err
    items = [json.loads(line) for line in out.read_text().splitlines()]
    assert items == [{"question": "0 + 1", "answer": "1", "rationales": ["add"] * 8}]
    model = make_model(tmp_path / "model")
    words = ["train", out, "--student", model, "--test", given, "--out", tmp_path / "run", "--epochs", "2", "--batch-size", "1"]
    words += ["--max-new-tokens", "8"]
    code, shown, err = tutelage(*words, "--json", tmp_path / "r.json")
    assert code == 0 and "weights at the end" in shown, err
    result = json.loads((tmp_path / "r.json").read_text())
    assert sum(result["weights"]) == pytest.approx(1, abs=1e-4) and result["accuracy"] == 0
    assert (tmp_path / "run" / "seed-0" / "student.safetensors").exists()


def test_a_teacher_without_right_answers_leaves_with_1(tmp_path: Path) -> None:
    out = tmp_path / "items.jsonl"
    with serving(lambda asked, number: said("no")) as server:
        code, _, err = tutelage("collect", questions(tmp_path / "q.jsonl"), "--out", out, *at(server.url))
    assert code == 1 and "no item is kept" in err and not out.exists()
