"""The page of a run over tasks: every figure of the matrix, and what changed since a task was learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.distillation.continual import continual_result
from tutelage.errors import InputError
from tutelage.reports.continual import continual_report, heat_map
from tutelage.reports.report import write_report
from tutelage.storage import write_json

R = [[90.0, 10.0], [70.0, 80.0]]


def test_a_cell_is_coloured_by_the_change_since_its_task_was_learned() -> None:
    first, second = heat_map(R, ["A", "B"])
    assert [cell["change"] for cell in first["cells"]] == [None, -20.0] and first["cells"][1]["strength"] == 100
    assert [cell["taught"] for cell in second["cells"]] == [False, True] and second["cells"][0]["change"] is None


def test_a_result_becomes_a_page(tmp_path: Path) -> None:
    result = continual_result(
        {"one head": [R, [[92.0, 12.0], [74.0, 80.0]]], "a head a task": [[90.0, 10.0], [90.0, 80.0]]}, ["A", "B"]
    )
    assert result["arms"][0]["matrix"] == [[91.0, 11.0], [72.0, 80.0]] and result["arms"][0]["figures"]["forgetting"] == 19.0
    write_json(tmp_path / "continual.json", result)
    written = write_report(tmp_path)
    page = written.page.read_text()
    assert written.format == "tutelage-continual" and all(text in page for text in ("one head", "after B", "72.0", "19.0"))
    single = continual_report(continual_result({"<b>": [[50.0]]}, ["only"]))
    assert "&lt;b&gt;" in single and "50.0" in single


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one row and column"):
        continual_report(continual_result({"a": R}, ["A", "B"]) | {"tasks": ["A"]})
    with pytest.raises(InputError, match="arms"):
        continual_report({"format": "tutelage-continual", "version": 1, "tasks": []})
    with pytest.raises(InputError, match="names"):
        continual_result({"a": R}, ["A"])
    with pytest.raises(InputError, match="shape"):
        continual_result({"a": []}, ["A"])
