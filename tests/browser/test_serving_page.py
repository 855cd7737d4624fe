"""The server's page in a real browser, against a real server process. Skipped, with the reason, where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'tutelage[serve]'")

from tutelage.bench.serving import server  # noqa: E402

OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("svg, nav, textarea"))
  .map((e) => `${e.tagName}.${e.className}`)"""
SHADE = "() => Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server("stub", 0, True) as url:
        yield url


@pytest.fixture
def view(browser: Any, url: str) -> Iterator[Any]:
    """Open the page; at the end no error was logged but those expected, and nothing was asked of another server."""
    trouble: list[str] = []
    opened: list[Any] = []

    def view(**options: Any) -> Any:
        page = browser.new_page(**options)
        page.set_default_timeout(10_000)
        page.on("console", lambda message: message.type == "warning" and trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or trouble.append(request.url))
        page.goto(url)
        page.wait_for_selector("#inputs img")  # a drawn scene to begin with
        opened.append(page)
        return page

    yield view
    for page in opened:
        page.close()
    assert trouble == []


def test_a_question_is_answered_with_every_step(view: Any, tmp_path: Path) -> None:
    page = view(viewport={"width": 1200, "height": 900})
    page.locator("#question").fill("What color is the circle?")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#trace .step")
    assert page.locator(".says").inner_text() == "red"
    assert page.locator("#trace .source").first.inner_text() == "BOX0=LOC(image=IMAGE,object='circle')"
    assert page.locator("#trace .step").count() == 4
    svg, box = page.locator(".step svg.region").first.bounding_box(), page.locator(".step rect.found").first.bounding_box()
    scale = svg["height"] / 48
    left = svg["x"] + (svg["width"] - svg["height"]) / 2  # the stub finds (4, 4, 24, 24) of 48 x 48
    assert box["x"] - left == pytest.approx(4 * scale, abs=3) and box["width"] == pytest.approx(20 * scale, abs=5)
    assert page.locator(".step").nth(1).locator("svg").count() == 2, "what was cut, and what came of it"
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 30_000


def test_a_program_is_changed_and_run(view: Any) -> None:
    page = view()
    page.locator("#question").fill("How many circles are there?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trace .step")
    assert page.locator(".says").inner_text() == "1"
    page.locator("#program").fill("A=COUNT(box=B)\nFINAL_RESULT=RESULT(var=A)")
    page.get_by_role("button", name="Run this program").click()
    playwright.expect(page.locator("#answer .story")).to_contain_text("B")
    page.locator("#program").fill("BOX=LOC(image=IMAGE,object='x')\nA=CROP(image=IMAGE,box=BOX)\nFINAL_RESULT=RESULT(var=A)")
    page.get_by_role("button", name="Run this program").click()
    page.wait_for_selector(".says svg")


def test_own_pictures_and_what_cannot_be_read(view: Any, tmp_path: Path) -> None:
    page = view()
    for name, shade in (("left", 10), ("right", 200)):
        PIL.Image.fromarray(np.full((30, 60, 3), shade, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("<img src=x onerror=alert(1)>")
    page.locator("#file").set_input_files([tmp_path / "left.png", tmp_path / "right.png"])
    playwright.expect(page.locator("#inputs img")).to_have_count(2)
    page.locator("#question").fill("The left image contains a circle.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trace .step")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    playwright.expect(page.locator("#inputs img")).to_have_count(1)
    page.locator("#question").fill("<b>What</b>?")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#answer .story")).to_contain_text("cannot read this as an image")


def test_dark_light_and_phone(view: Any) -> None:
    assert view(color_scheme="dark").evaluate(SHADE) < 64
    assert view(color_scheme="light").evaluate(SHADE) > 192
    page = view(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True)
    page.locator("#question").fill("What color is the circle?")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#trace .step")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(OVERFLOWING) == []
