"""`tutelage cakt`: from a simulated log to a tracer and its predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.datasets.student_logs import hashed_name

runner = CliRunner()


def call(*words: object, code: int = 0) -> str:
    result = runner.invoke(main.app, ["cakt", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_simulate_fit_and_predict(tmp_path: Path) -> None:
    log, tracer, out = tmp_path / "answers.csv", tmp_path / "tracer", tmp_path / "chances.csv"
    assert "160 answers of 16 students" in call("simulate", log, "--students", 16, "--answers", 10, "--concepts", 5)
    call("fit", log, "--out", tracer, "--side", 2, "--epochs", 1, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 <= report["low"] <= report["auc"] <= report["high"] <= 1 and report["concepts"] == 5
    shown = call("predict", tracer, log, "--student", "student 7", "--concept", "concept 03")
    assert shown.split()[0] == hashed_name("student 7") and 0 < float(shown.split()[1]) < 1
    call("predict", tracer, log, "--out", out)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 16 * 5 and "student 7" not in out.read_text()
    found = [row["chance"] for row in rows if row["student"] == hashed_name("student 7") and row["concept"] == "concept 03"]
    assert abs(float(found[0]) - float(shown.split()[1])) < 1e-3


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "answers.csv"
    call("simulate", log, "--students", 1, "--answers", 4)
    assert "1 student with two answers" in call("fit", log, "--out", tmp_path / "t", code=2)
    assert "no student 'nobody'" in call("predict", tmp_path / "t", log, "--student", "nobody", code=2)
    assert "no column 'grade'" in call("fit", log, "--out", tmp_path / "t", "--correct-column", "grade", code=2)
