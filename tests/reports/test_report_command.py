from __future__ import annotations

import json
from pathlib import Path

import made_up_comparison
from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.storage import write_json


def test_a_run_becomes_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "comparison.json", made_up_comparison.comparison())
    page, facts = tmp_path / "page.html", tmp_path / "facts.json"
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(page), "--json", str(facts)])
    assert result.exit_code == 0, result.output
    assert json.loads(facts.read_text()) == {
        "report": str(page),
        "results": str(tmp_path / "comparison.json"),
        "format": "tutelage-comparison",
        "bytes": page.stat().st_size,
    }


def test_no_results_is_exit_code_2_and_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert str(tmp_path) in result.output and "remedy" in result.output
