"""`tutelage polyglot`: from seed prompts to a ranking with its pictures, against a stub endpoint and tiny models."""

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
    result = runner.invoke(main.app, ["polyglot", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def at(url: str) -> list[str]:
    return ["--set", f"endpoint.url={url}", "--set", "endpoint.model=stub", "--set", "endpoint.attempts=1"]


def test_from_seed_prompts_to_rows(tmp_path: Path) -> None:
    seeds = lines(tmp_path / "seeds.jsonl", [{"prompt": f"Frage {i}", "language": "German"} for i in range(3)])
    out = tmp_path / "rows.jsonl"
    words = ["synthesize", seeds, "--language", "German", "--count", "4", "--strategy", "respond", "--out", out]
    with serving(lambda asked, number: said(f"Antwort {number}")) as server:
        code, shown, err = tutelage(*words, *at(server.url), "--json", tmp_path / "r.json")
        requests = len(server.asked)
        assert code == 0 and "rows by endpoint:stub" in shown, err
        assert tutelage(*words, *at(server.url))[0] == 0 and len(server.asked) == requests
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 1 <= len(rows) == requests and rows[0].keys() == {"prompt", "response", "strategy", "language", "model"}
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["usage"]["answers"] == requests and result["rows"] == len(rows)


def test_a_teacher_that_answers_nonsense_leaves_with_1(tmp_path: Path) -> None:
    seeds = lines(tmp_path / "seeds.jsonl", [{"prompt": f"Frage {i}", "language": "German"} for i in range(3)])
    out = tmp_path / "rows.jsonl"
    with serving(lambda asked, number: said("no")) as server:
        words = ("--language", "German", "--count", "2", "--strategy", "generate", "--out", out, *at(server.url))
        code, shown, err = tutelage("synthesize", seeds, *words)
    assert code == 1 and "2 not JSON" in shown and "no row is kept" in err and not out.exists()


def test_no_language_model_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    seeds = lines(tmp_path / "seeds.jsonl", [{"prompt": "p", "language": "German"}])
    code, _, err = tutelage("synthesize", seeds, "--language", "German", "--out", tmp_path / "x.jsonl")
    assert code == 2 and "no language model is set" in err and "--set endpoint.url" in err


def test_measure_students_rank(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    model = make_model(tmp_path / "model")
    rows = [
        {"prompt": f"p{i}", "response": f"{name}{i}", "language": language, "model": name, "strategy": "respond"}
        for name in ("one", "two") for language in ("de", "ja") for i in range(3)
    ]  # fmt: skip
    data, table = lines(tmp_path / "rows.jsonl", rows), tmp_path / "table.csv"
    judged = lambda asked, number: said("Score: 5" if "one" in asked.body["messages"][-1]["content"] else "Score: 2")  # noqa: E731
    with serving(judged) as server:
        code, shown, err = tutelage("measure", data, "--fluency", model, "--embedding", model, "--out", table, *at(server.url))
        assert code == 0 and "4 cells" in shown and len(server.asked) == len(rows), err
    questions = [{"prompt": "p0", "response": "a", "choices": ["a", "b"], "language": one} for one in ("de", "ja")]
    test = lines(tmp_path / "test.jsonl", questions)
    scored = tmp_path / "scored.csv"
    words = ["--base", model, "--reference", model, "--test", test, "--out", scored, "--run", tmp_path / "run", "--epochs", 1]
    code, shown, err = tutelage("students", table, data, *words)
    assert code == 0 and len(list((tmp_path / "run").glob("student-*.json"))) == 4, err
    outputs = {name: tmp_path / name for name in ("ranking.csv", "ranking.svg", "cells.svg", "scaler.json")}
    words = ["--out", outputs["ranking.csv"], "--picture", outputs["ranking.svg"], "--heat-map", outputs["cells.svg"]]
    code, shown, err = tutelage("rank", scored, *words, "--keep-scaler", outputs["scaler.json"], "--analyse", "--json", "-")
    result = json.loads(shown)
    assert code == 0 and result["by"] == "z" and len(result["invalid"]) == 4, "the reference is the base"
    assert result["teachers"][0]["teacher"] == "one" and abs(sum(result["analysis"]["explained"]) - 1) < 1e-9
    assert all(path.exists() for path in outputs.values()) and "<svg" in outputs["cells.svg"].read_text()
    code, shown, _ = tutelage("rank", scored, "--scaler", outputs["scaler.json"])
    assert code == 0 and shown.index("one") < shown.index("two") and "no PG, the reference is not above the base" in shown


def test_a_table_with_a_missing_cell_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("teacher,language,distinct_prompts,distinct_responses,rubric,perplexity\na,de,0.5,,3,9\n")
    code, _, err = tutelage("rank", table)
    assert code == 2 and "t.csv:2: distinct_responses: a missing cell" in err and "remedy" in err
