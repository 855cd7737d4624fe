"""The pages in a real browser. Skipped, with the reason, where there is no Chromium or no playwright."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_comparison
import made_up_results
import made_up_trace
import pytest

from tutelage.reports import comparison_report, study_report
from tutelage.reports.trace import trace_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

PHONE = {"width": 390, "height": 844}
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg, nav"))
  .map((e) => `${e.tagName}.${e.className}`)"""

UNNAMED = """() => [...document.querySelectorAll("button, select, [role=img], [role=region]")]
  .filter((e) => !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).map((e) => e.outerHTML.slice(0, 99))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    html = {
        "study": study_report(made_up_results.study()),
        "comparison": comparison_report(made_up_comparison.comparison()),
        "trace": trace_report(made_up_trace.trace()),
    }
    for name, text in html.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in html}


@pytest.fixture
def view(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Open a page by name; at the end no error was logged and nothing was asked of the network."""
    trouble: list[str] = []

    def logged(message: Any) -> None:
        if message.type in ("error", "warning"):
            trouble.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            trouble.append(request.url[:99])

    opened: list[Any] = []

    def view(name: str, **options: Any) -> Any:
        page = browser.new_page(**options)
        page.set_default_timeout(10_000)
        page.on("console", logged)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", asked)
        page.goto(pages[name].as_uri())
        opened.append(page)
        return page

    yield view
    for page in opened:
        page.close()
    assert trouble == []


def test_clicking_through_the_samples(view: Any, tmp_path: Path) -> None:
    page = view("study", viewport={"width": 1200, "height": 900})
    position, sample = page.locator("#position"), page.locator("#sample")
    assert position.inner_text() == "1 of 10"
    assert sample.locator(".step").count() == 4
    assert "went wrong at step 3: VQA said" in sample.locator(".story").inner_text()
    assert sample.locator(".step.wrong .source").inner_text().startswith("ANSWER0=VQA(")
    assert sample.locator(".dist .bars i").count() >= 9

    page.get_by_role("button", name="Next sample").click()
    assert position.inner_text() == "2 of 10"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert position.inner_text() == "10 of 10"

    page.get_by_role("button", name="Broken by training").click()
    assert position.inner_text() == "1 of 2"
    assert sample.locator(".verdict .ok").count() == sample.locator(".verdict .no").count() == 1
    page.get_by_role("button", name="All").click()
    page.locator("#task").select_option("easy_vqa")
    assert position.inner_text() == "1 of 4"

    shot = tmp_path / "report.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000


def test_boxes_lie_on_the_picture_where_they_should(view: Any) -> None:
    page = view("study", viewport={"width": 1200, "height": 900})
    picture = page.locator(".step").first.locator(".picture")
    playwright.expect(picture.locator("svg").first).to_have_attribute("viewBox", re.compile("."))
    frame, box = picture.bounding_box(), picture.locator("rect.after").bounding_box()
    x1, y1, x2, _, _ = made_up_results.study()["samples"][0]["steps"][0]["boxes"][0]
    scale = frame["width"] / 48
    assert box["x"] - frame["x"] == pytest.approx(x1 * scale, abs=3)
    assert box["y"] - frame["y"] == pytest.approx(y1 * scale, abs=3)
    assert box["width"] == pytest.approx((x2 - x1) * scale, abs=5)
    assert picture.locator("rect.before").count() == picture.locator("rect.teacher").count() == 1


def test_the_steps_of_one_question_are_drawn_on_its_photo(view: Any) -> None:
    page = view("trace", viewport={"width": 1200, "height": 900})
    assert page.locator("[data-name=answer]").inner_text() == "red"
    first = page.locator(".step").nth(0)
    photo, box = first.locator("svg").first.bounding_box(), first.locator("rect.box").bounding_box()
    scale = min(photo["width"] / 100, photo["height"] / 80)
    assert box["width"] == pytest.approx(20 * scale, abs=4) and box["height"] == pytest.approx(30 * scale, abs=4)


@pytest.mark.parametrize("name", ["study", "comparison", "trace"])
def test_dark_and_light(view: Any, name: str) -> None:
    shade = "() => Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    page = view(name, color_scheme="dark")
    assert page.evaluate(shade) < 64
    page.locator("#theme").click()
    assert page.evaluate(shade) > 192
    for _ in range(20):  # the browser may be a moment late in writing it down
        page.reload()
        if page.evaluate(shade) > 192:
            break
    assert page.evaluate(shade) > 192, "the choice is kept"
    assert view(name, color_scheme="light").evaluate(shade) > 192


@pytest.mark.parametrize("name", ["study", "comparison", "trace"])
def test_a_phone_shows_it_without_overflow(view: Any, name: str) -> None:
    page = view(name, viewport=PHONE, device_scale_factor=2, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(OVERFLOWING) == []
    assert float(page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 16


def test_it_works_by_keyboard(view: Any) -> None:
    page = view("study")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("[data-outcome=fixed]").focus()
    page.keyboard.press("Enter")
    assert page.locator("#position").inner_text() == "1 of 4"
    page.keyboard.press("ArrowRight")
    assert page.locator("#position").inner_text() == "2 of 4"
    assert page.evaluate(UNNAMED) == []


def test_it_prints_without_its_controls(view: Any) -> None:
    page = view("study")
    page.emulate_media(media="print")
    assert not page.locator(".top").is_visible() and not page.locator(".filters").is_visible()
    assert page.locator("#sample .step").first.is_visible()


@pytest.mark.parametrize("name", ["study", "comparison"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_table_that_hides_columns_says_so(view: Any, name: str, width: int) -> None:
    page = view(name, viewport={"width": width, "height": 900})
    boxes = page.locator(".scroll:visible")
    wide = [boxes.nth(n) for n in range(boxes.count()) if boxes.nth(n).evaluate("box => box.scrollWidth > box.clientWidth + 1")]
    hints = page.locator(".more-columns:visible")
    playwright.expect(hints).to_have_count(len(wide))
    assert bool(wide) == (width == 390)
    for box in wide:
        assert "More columns" in box.evaluate("box => box.previousElementSibling.textContent")
    if width == 1400:
        return
    page.set_viewport_size({"width": 1400, "height": 900})
    playwright.expect(hints).to_have_count(0)
