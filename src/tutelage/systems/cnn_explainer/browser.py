"""A page in a headless Chromium: its picture, and how fast it is. Needs the extra ``dev`` (playwright) and a Chromium."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tutelage.errors import InputError, MissingExtra
from tutelage.storage import write_bytes
from tutelage.systems.cnn_explainer.script import CHROMIUM, find_program


@contextlib.contextmanager
def opened_browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright.

    Raises:
        MissingExtra: playwright is not installed.
        InputError: no Chromium is.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise MissingExtra("playwright", "dev") from None
    path = find_program(CHROMIUM)
    if path is None:
        raise InputError("no Chromium is installed", where="PATH", remedy="apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def picture_of_page(page: str | Path, out: str | Path, width: int = 1400, height: int = 960) -> Path:
    """A PNG of the page as it opens, in light colours; its palette is reduced, so that it stays small."""
    import io

    import PIL.Image

    with opened_browser() as browser:
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce")
        tab.goto(Path(page).resolve().as_uri())
        tab.wait_for_selector("body[data-picture]")
        shot = PIL.Image.open(io.BytesIO(tab.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})))
    file = io.BytesIO()
    shot.convert("RGB").quantize(192, dither=PIL.Image.Dither.NONE).save(file, "png", optimize=True)
    return write_bytes(out, file.getvalue())


READY = """() => new Promise((done) => {
  const look = () => (document.body.dataset.picture ? done(performance.now()) : setTimeout(look, 2));
  look();
})"""
NEXT_PICTURE = """(pixels) => new Promise((done) => {
  const before = document.body.dataset.picture, begin = performance.now();
  const look = () => (document.body.dataset.picture === before ? setTimeout(look, 1)
    : requestAnimationFrame(() => done({ shown: performance.now() - begin, engine: App.data.milliseconds })));
  App.compute(Uint8Array.from(pixels));
  look();
})"""


def time_page(html: str, pictures: list[list[int]], rounds: int = 3) -> dict[str, float]:
    """Milliseconds of a page in headless Chromium, medians over ``rounds`` fresh tabs.

    Args:
        html: the page.
        pictures: pixels 0..255 of further pictures, flattened, that are given to it one by one in each tab.
        rounds: tabs.

    Returns:
        ``first_paint_ms`` (the browser's first contentful paint), ``first_picture_ms`` (until the first picture is computed
        and drawn), ``new_picture_ms`` (from choosing another picture until it is computed and drawn), ``engine_ms`` (the
        engine alone, in the worker); each of them once more as ``least_…``, the time that other work on the machine
        disturbed least; and ``slowest_picture_ms``.

    Raises:
        MissingExtra, InputError: as :func:`opened_browser`.
    """
    found: dict[str, list[float]] = {name: [] for name in ("first_paint_ms", "first_picture_ms", "new_picture_ms", "engine_ms")}
    with tempfile.TemporaryDirectory() as folder, opened_browser() as browser:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
            tab.goto(file.as_uri())
            found["first_picture_ms"].append(tab.evaluate(READY))
            paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
            if paint is not None:
                found["first_paint_ms"].append(paint)
            for pixels in pictures:
                times = tab.evaluate(NEXT_PICTURE, pixels)
                found["new_picture_ms"].append(times["shown"])
                found["engine_ms"].append(times["engine"])
            tab.close()
    medians = {name: median(values) for name, values in found.items() if values}
    least = {f"least_{name}": min(values) for name, values in found.items() if values}
    return medians | least | {"slowest_picture_ms": max(found["new_picture_ms"])}
