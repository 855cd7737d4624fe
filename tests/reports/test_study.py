from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up_results
import pytest

from tutelage.errors import InputError, StorageError
from tutelage.reports import study_report, write_report
from tutelage.storage import write_json


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return made_up_results.study(samples=10)


@pytest.fixture
def changed(results: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(results)


class Page(HTMLParser):
    """Elements with their attributes, and the words between them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def test_one_seed_has_no_standard_deviation_and_a_gap_that_grew_is_not_closed(changed: dict[str, Any]) -> None:
    def text() -> str:
        return Page(study_report(changed)).text.replace("\xa0", " ").replace("\u202f", " ")

    assert "mean ± standard deviation over 3 seeds" in text() and "closing 77 %" in text()
    changed["seeds"], changed["summary"]["gap_closed"] = [0], -1.27
    assert "standard deviation" not in text() and "Accuracy in %, one seed" in text()
    assert "widens the gap to the specialists themselves by 127 %" in text() and "closing" not in text() and "−127" not in text()
    changed["summary"]["gap_closed"] = 1.1
    assert "past the specialists themselves: 110 % of the gap" in text()


def test_the_page_is_whole_and_says_the_figures_plainly(results: dict[str, Any]) -> None:
    page = Page(study_report(results))
    assert page.open == []
    for words in (
        "gained 8.8 points",
        "+8.1 to +9.5",
        "closing 77 %",
        "forgot 18.2 points",
        "✗ not reached",
        "routing keeps the teachers",
        "3 limit, 12 runtime",
    ):
        assert words in page.text.replace("\xa0", " ").replace("\u202f", " "), words
    assert len([a for a in page.find("tr") if a.get("class") == "met"]) == 4
    assert {a["id"] for a in page.find("h2")} >= {"accuracy", "kept", "modules", "lessons", "health", "samples"}
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = {(a["href"] or "")[1:] for a in page.find("a")} | {(a["href"] or "")[1:] for a in page.find("use")}
    assert targets <= set(ids)


def test_nothing_is_loaded_from_anywhere(results: dict[str, Any]) -> None:
    page = Page(study_report(results))
    links = [a[k] or "" for _, a in page.elements for k in ("src", "href", "srcset", "action") if k in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not page.find("link", rel="stylesheet") and not [a for a in page.find("script") if "src" in a]
    policy = next(a["content"] for a in page.find("meta") if "http-equiv" in a)
    assert "default-src 'none'" in (policy or "")


def test_samples_come_back_from_the_page_as_they_went_in(results: dict[str, Any]) -> None:
    html = study_report(results)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert data and json.loads(data[1])["samples"] == results["samples"]


def test_text_of_a_program_is_never_markup(changed: dict[str, Any]) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    changed["samples"][0]["question"] = changed["command"] = attack
    changed["tables"]["arms"][0]["label"] = changed["summary"]["verdicts"][0]["claim"] = attack
    html = study_report(changed)
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("<script") == html.count("</script>") == 3


def test_an_interval_that_holds_zero_is_no_gain(changed: dict[str, Any]) -> None:
    rows = changed["tables"]["arms"] = changed["tables"]["arms"][:3]
    for row, (mean, lo, hi) in zip(rows, [(2, 1, 3), (2, -1, 5), (-2, -3, -1)]):
        row["gain"] = {"mean": mean, "lo": lo, "hi": hi}
    bars = [
        " ".join((a["class"] or "").split()) for a in Page(study_report(changed)).find("rect") if "bar" in (a.get("class") or "")
    ]
    assert bars == ["bar sdvp", "bar sdvp unsure", "bar sdvp loss"]


def test_the_heat_map_shows_forgetting_and_marks_what_was_taught(results: dict[str, Any]) -> None:
    cells = [a for a in Page(study_report(results)).find("td") if "--s:" in (a.get("style") or "")]
    assert len(cells) == 2 * 4 * 10
    assert sum("trained" in (a["class"] or "") for a in cells) == 2 * 3
    counting = [a for a in cells if a.get("title") == "−24.5 since the start"]
    assert len(counting) == 1 and "down" in (counting[0]["class"] or "") and counting[0]["style"] == "--s:100%"


def test_what_was_not_measured_is_said(changed: dict[str, Any]) -> None:
    changed["tables"] = {"arms": changed["tables"]["arms"]}
    changed["tables"]["arms"][0]["cells"]["sdvp"]["mean"] = float("nan")
    del changed["samples"], changed["seeds"], changed["versions"]
    text = Page(study_report(changed)).text
    for words in ("matrix was not measured", "No module was measured", "No training job is recorded", "kept no samples"):
        assert words in text
    assert "nan" not in text


def test_an_arm_of_the_users_own_is_shown(changed: dict[str, Any]) -> None:
    for row in changed["tables"]["arms"]:
        row["cells"]["supervised"] = {"mean": 70.0, "sd": None}
    page = Page(study_report(changed))
    assert "supervised" in page.text
    assert len(page.find("use", href="#m-other")) == 11  # ten tasks and the legend


def drop(path: str) -> Callable[[Any], None]:
    *parents, last = path.split(".")

    def apply(data: Any) -> None:
        for key in parents:
            data = data[int(key) if isinstance(data, list) else key]
        del data[last]

    return apply


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (drop("format"), "format"),
        (lambda d: d.update(version=99), "version"),
        (drop("summary"), "summary"),
        (drop("tables"), "tables"),
        (drop("tables.arms"), "tables.arms"),
        (drop("tables.arms.1.cells"), "tables.arms.1.cells"),
        (drop("tables.arms.2.task"), "tables.arms.2.task"),
        (lambda d: d["tables"]["arms"][0].update(group="old"), "tables.arms.0.group"),
        (lambda d: d["tables"]["matrix"]["sdvp"].pop(), "tables.matrix.sdvp"),
        (drop("samples.3.question"), "samples.3.question"),
        (drop("samples.3.arms.after.correct"), "samples.3.arms.after.correct"),
        (lambda d: d["tables"]["modules"][0].update(cells=[]), "tables.modules.0.cells"),
        (lambda d: d["tables"]["types"][2]["cells"].update(sdvp=61.0), "tables.types.2.cells.sdvp"),
        (drop("tables.lessons.0.module"), "module"),
    ],
)
def test_a_spoilt_field_is_named(changed: dict[str, Any], spoil: Callable[[Any], None], field: str, tmp_path: Path) -> None:
    spoil(changed)
    file = write_json(tmp_path / "study.json", changed)
    with pytest.raises(InputError) as error:
        study_report(file)
    assert field in str(error.value) and str(file) in str(error.value) and error.value.remedy


def test_a_run_folder_becomes_a_page_beside_its_results(results: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", results)
    written = write_report(tmp_path)
    assert written.page == tmp_path / "report.html"
    assert written.page.stat().st_size == written.bytes < 300_000
    assert write_report(tmp_path / "study.json", tmp_path / "other.html").page.read_bytes() == written.page.read_bytes()


def test_what_cannot_be_reported_or_written_is_said(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json or comparison\.json"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="'tutelage-run'"):
        write_report(write_json(tmp_path / "run.json", {"format": "tutelage-run"}))
    (tmp_path / "cut.json").write_text(json.dumps(results)[:5000])
    with pytest.raises(InputError, match=r"cut\.json:1"):
        write_report(tmp_path / "cut.json")
    with pytest.raises(StorageError):
        write_report(write_json(tmp_path / "study.json", results), tmp_path / "study.json" / "page.html")
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob("*.part"))
