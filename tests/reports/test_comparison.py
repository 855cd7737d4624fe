from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up_comparison
import pytest

from tutelage.errors import InputError
from tutelage.reports import comparison_report, write_report
from tutelage.storage import write_json

RESULTS = made_up_comparison.comparison()


@pytest.fixture
def results() -> dict[str, Any]:
    return copy.deepcopy(RESULTS)


def words(html: str) -> str:
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text).replace("&nbsp;", " ")).replace("\u202f", " ")


def test_the_page_says_the_result_at_equal_steps_and_equal_time(results: dict[str, Any]) -> None:
    text = words(comparison_report(results))
    for part in (
        "gained 5.1 points of accuracy",
        "+4.4 to +5.8",
        "closing 48 %",
        "is +4.6",
        "At equal steps",
        "At equal wall-clock",
    ):
        assert part in re.sub(r"\s+([,.)])", r"\1", text), part
    for part in ("60 000", "2.3 MiB", "410 steps", "a81fe2", "0.024", "norm_direction × 2"):
        assert part in text, part


def test_a_loss_is_called_a_loss(results: dict[str, Any]) -> None:
    results["summary"]["gain"] = -1.5
    assert "lost 1.5 points" in words(comparison_report(results))


def test_one_seed_has_no_standard_deviation_and_a_gap_that_grew_is_not_closed(results: dict[str, Any]) -> None:
    assert "mean ± standard deviation over 5 seeds" in words(comparison_report(results))
    results["seeds"], results["summary"]["gap_closed"] = [0], -1.27
    text = re.sub(r"\s+([,.)])", r"\1", words(comparison_report(results)))
    assert "standard deviation" not in text and "one seed; steps and time" in text
    assert "widens the gap to the teacher by 127 %" in text and "closing" not in text


def test_every_seed_is_a_dot(results: dict[str, Any]) -> None:
    html = comparison_report(results)
    assert html.count('href="#m-seed"') == 2 * 2 * 5
    assert html.count("<polyline") == 2 * 2 + 2 * 2 + 3


def test_a_single_run_without_measurements_is_still_a_page(results: dict[str, Any]) -> None:
    for key in ("summary", "curves", "losses", "cache", "seeds"):
        del results[key]
    results["arms"] = [{"name": "student", "role": "student", "equal_steps": {"mean": None}}]
    text = words(comparison_report(results))
    for part in ("1 arm, measured by accuracy", "No arm was scored", "Not measured", "No cache was used"):
        assert part in text


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.pop("metric"), "metric.name"),
        (lambda d: d.pop("arms"), "arms"),
        (lambda d: d["arms"][1].update(role="boss"), "arms.1.role"),
        (lambda d: d["curves"][0].pop("points"), "curves.0.points"),
        (lambda d: d["losses"].pop("terms"), "losses.terms"),
    ],
)
def test_a_spoilt_field_is_named(results: dict[str, Any], spoil: Callable[[Any], Any], field: str) -> None:
    spoil(results)
    with pytest.raises(InputError, match=re.escape(field)):
        comparison_report(results)


def test_the_folder_of_a_comparison_is_found(results: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "comparison.json", results)
    written = write_report(tmp_path)
    assert written.format == "tutelage-comparison" and written.page.read_text().startswith("<!doctype html>")
