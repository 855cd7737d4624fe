"""``tutelage eval``: tables, JSON by official names, and exit codes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli.main import app

SPEC = importlib.util.spec_from_file_location("gqa_by_hand", Path(__file__).parents[1] / "datasets" / "test_gqa_metrics.py")
gqa_by_hand = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gqa_by_hand)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    gqa_by_hand.Files(tmp_path)
    labels = {"dev-1-0-0": "True", "dev-1-1-0": "False", "dev-2-0-0": "True"}
    raw = {"sentence": "s", "left_url": "l", "right_url": "r", "synset": "y", "query": "q"}
    lines = [json.dumps(raw | {"identifier": name, "label": label}) for name, label in labels.items()]
    (tmp_path / "dev.json").write_text("\n".join(lines))
    (tmp_path / "dev.csv").write_text("dev-1-0-0,True\ndev-1-1-0,True\ndev-2-0-0,True\n")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def gqa(folder, *more):
    return run("gqa", "--questions", folder / "questions.json", "--predictions", folder / "predictions.json", *more)


def test_gqa_with_everything(folder):
    out = folder / "scores.json"
    extra = [part for name in ("choices", "scene-graphs", "attention") for part in (f"--{name}", _file(folder, name))]
    result = gqa(folder, *extra, "--consistency", "--json", out)
    assert result.exit_code == 0, result.output
    scores = json.loads(out.read_text())
    found = {name: scores[name] for name in ("accuracy", "binary", "open", "validity", "plausibility", "consistency")}
    assert found == pytest.approx(
        {"accuracy": 40, "binary": 100 / 3, "open": 50, "validity": 80, "plausibility": 60, "consistency": 75}
    )
    assert (scores["distribution"], scores["grounding"]) == (pytest.approx(0.0125), pytest.approx(18))
    assert scores["accuracyPerStructuralType"]["query"] == {"accuracy": 50, "questions": 2}
    assert {"command", "versions", "machine"} < set(scores)
    for text in ("accuracy", "40.00 %", "lower is better", "structural type query"):
        assert text in result.output


def _file(folder, option):
    return folder / f"{option.replace('-', '_')}.json"


def test_gqa_json_on_standard_output_is_json_alone(folder):
    result = gqa(folder, "--json", "-")
    assert result.exit_code == 0 and json.loads(result.stdout)["accuracy"] == 40


@pytest.mark.parametrize("name", ["questions", "predictions"])
def test_a_cut_file_leaves_with_2_and_writes_nothing(folder, name):
    file = folder / f"{name}.json"
    file.write_text(file.read_text()[:-10])
    result = gqa(folder, "--json", folder / "scores.json")
    assert result.exit_code == 2 and f"{name}.json" in result.stderr and "remedy" in result.stderr
    assert not (folder / "scores.json").exists()


def test_policies_reach_the_scorer(folder):
    (folder / "predictions.json").write_text(
        json.dumps([{"questionId": name, "prediction": "red"} for name in ("1", "1", "2", "3", "6", "99")])
    )
    assert gqa(folder).exit_code == 2
    result = gqa(folder, "--missing", "wrong", "--unknown", "count", "--duplicates", "last", "--json", "-")
    scores = json.loads(result.stdout)
    assert [scores[f"{kind}Predictions"] for kind in ("missing", "unknown", "duplicate")] == [1, 1, 1]
    assert scores["accuracy"] == 20


def test_predictions_of_a_language_model_are_scored_and_a_hidden_split_becomes_a_submission(folder):
    answers = json.loads((folder / "predictions.json").read_text())
    lines = [json.dumps({"question_id": int(a["questionId"]), "text": a["prediction"].title() + "."}) for a in answers]
    (folder / "predictions.json").write_text("\n".join(lines))
    result = gqa(folder, "--consistency", "--normalize", "llava", "--json", folder / "s.json")
    assert result.exit_code == 0 and "0 more are not in it" in result.output, result.output
    scores = json.loads((folder / "s.json").read_text())
    assert (scores["accuracy"], scores["consistency"], scores["normalization"]) == (40, 75, "llava")
    questions = json.loads((folder / "questions.json").read_text())
    hidden = {name: {key: raw[key] for key in ("imageId", "question", "isBalanced")} for name, raw in questions.items()}
    (folder / "questions.json").write_text(json.dumps(hidden))
    refused = gqa(folder)
    assert refused.exit_code == 2 and "--submission FILE.json" in refused.stderr
    result = gqa(folder, "--normalize", "llava", "--submission", folder / "out.json", "--json", "-")
    assert result.exit_code == 0 and json.loads(result.stdout)["questions"] == len(questions), result.output
    assert json.loads((folder / "out.json").read_text()) == answers


def test_an_error_names_the_option_not_the_argument(folder):
    result = gqa(folder, "--attention", _file(folder, "attention"))
    assert result.exit_code == 2 and result.stderr.startswith("error: --attention: grounding needs scene graphs")
    assert "--scene-graphs" in result.stderr


def test_nlvr2(folder):
    out = folder / "scores.json"
    result = run("nlvr2", "--questions", folder / "dev.json", "--predictions", folder / "dev.csv", "--json", out)
    assert result.exit_code == 0 and "66.67 %" in result.output
    scores = json.loads(out.read_text())
    assert (scores["accuracy"], scores["consistency"]) == (pytest.approx(200 / 3), pytest.approx(50))


def test_nlvr2_line_cut_in_half(folder):
    file = folder / "dev.json"
    file.write_text(file.read_text()[:-30])
    result = run("nlvr2", "--questions", file, "--predictions", folder / "dev.csv")
    assert result.exit_code == 2 and "dev.json:3" in result.stderr


@pytest.mark.parametrize("command", ["gqa", "nlvr2"])
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: tutelage eval {command}" in " ".join(result.output.split())
