"""`tutelage icl`: a language model's accuracy in context, against a stub endpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli import main

from ..programs.generators.stub_server import said, serving

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))


def tutelage(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["icl", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def test_a_model_is_asked_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    out, picture, report = tmp_path / "curves.csv", tmp_path / "curves.svg", tmp_path / "r.json"
    words = ["conjunction", "--size", 3, "--examples", 2, "--examples", 4, "--functions", 6]
    with serving(lambda asked, number: said("0" if number % 2 else "none")) as server:
        chosen = ["--set", f"endpoint.url={server.url}", "--set", "endpoint.model=stub", "--set", "endpoint.attempts=1"]
        code, shown, err = tutelage(*words, *chosen, "--out", out, "--picture", picture, "--json", report)
    assert code == 0 and "class learner" in shown and "answers were no label" in shown, err
    assert len(out.read_text().splitlines()) == 1 + 6 * 2 and picture.read_text().startswith("<svg")
    found = json.loads(report.read_text())
    assert found["asked"] == 12 and found["guessed"] > 0 and found["curves"][0]["name"] == "endpoint:stub"


def test_an_unknown_class_and_no_model_have_remedies() -> None:
    code, _, err = tutelage("conjuntion")
    assert code == 2 and "did you mean conjunction" in err
    code, _, err = tutelage("parity")
    assert code == 2 and "no language model is set" in err
