"""The page of CNN Explainer in a real browser. Skipped, with the reason, where there is no Chromium or no playwright."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch import nn

from tutelage.distillation.small_models import SmallCNN, TinyVGG
from tutelage.systems.cnn_explainer import CNNExplainer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

PHONE = {"width": 390, "height": 844}
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg, nav, .samples, .away, .skip"))
  .map((e) => `${e.tagName}.${e.className}`)"""
UNNAMED = """() => [...document.querySelectorAll("button, select, input, [role=img], [role=group]")]
  .filter((e) => !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).map((e) => e.outerHTML.slice(0, 99))"""
OUTPUTS = "() => App.data.outputs.map((output) => Array.from(output))"
NAMES = ["cat", "dog", "a class with a long name"]
TINY_SIZE = 28


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def made() -> dict[str, CNNExplainer]:
    pixels = torch.randint(0, 256, (3, 3, TINY_SIZE, TINY_SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    networks = {
        "tiny": seeded(lambda: TinyVGG(3, 4, image_size=TINY_SIZE)),
        "gray": seeded(lambda: SmallCNN(3, 4, 8)),
        "hidden": seeded(
            lambda: nn.Sequential(
                nn.Conv2d(3, 6, 5, 2, 1),
                nn.ReLU(),
                nn.MaxPool2d(3, 3),
                nn.Flatten(),
                nn.Linear(96, 20),
                nn.ReLU(),
                nn.Linear(20, 3),
            )
        ),
    }
    return {
        name: CNNExplainer(network, pixels[:, :1] if name == "gray" else pixels, NAMES, image_size=TINY_SIZE)
        for name, network in networks.items()
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CNNExplainer, Path]]:
    folder = tmp_path_factory.mktemp("explained")
    return {name: (page, page.write(folder / f"{name}.html")) for name, page in made().items()}


@pytest.fixture
def view(browser: Any, pages: dict[str, tuple[CNNExplainer, Path]]) -> Iterator[Any]:
    """Open a page by name; at the end no error was logged and nothing was asked of the network."""
    trouble: list[str] = []
    opened: list[Any] = []

    def view(name: str, **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}, "reduced_motion": "reduce"} | options)
        page.set_default_timeout(10_000)
        page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else trouble.append(request.url)
        )
        page.goto(pages[name][1].as_uri())
        page.wait_for_selector("body[data-picture='1']")
        opened.append(page)
        return page

    yield view
    for page in opened:
        page.close()
    assert trouble == []


def where(page: Any) -> str:
    return page.evaluate("document.body.dataset.view")


@pytest.mark.parametrize("name", ["tiny", "gray", "hidden"])
def test_the_worker_computes_every_layer_as_pytorch_does(view: Any, pages: Any, name: str) -> None:
    page, explainer = view(name), pages[name][0]
    network, inputs = explainer.network(), explainer.inputs()
    for number in range(len(inputs)):
        page.locator(".sample").nth(number).click()
        page.wait_for_selector(f"body[data-picture='{number + 2}']")
        x, found = inputs[number : number + 1], page.evaluate(OUTPUTS)
        with torch.no_grad():
            for layer, outputs in zip(network, found, strict=True):
                x = layer(x)
                assert (torch.tensor(outputs).reshape(x.shape) - x).abs().max() <= 1e-5
        shown = page.evaluate("App.data.softmax.probabilities")
        assert sum(shown) == pytest.approx(1, abs=1e-6)
        assert shown == pytest.approx(x.softmax(1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["tiny", "gray", "hidden"])
def test_every_view_opens_and_closes(view: Any, name: str) -> None:
    page = view(name)
    for column in page.evaluate("App.columns.filter((column) => column.before !== null).map((column) => column.index)"):
        page.evaluate(f"App.go({{ column: {column}, unit: 0, part: null }})")
        assert where(page) == "neuron" and page.locator("#panel h3").count() == 1
        if page.locator(".factor").count():
            page.locator(".factor").last.click()
            assert where(page) == "formula" and page.locator("#panel .formula").first.inner_text()
            page.keyboard.press("Escape")
            assert where(page) == "neuron"
        page.keyboard.press("Escape")
        assert where(page) == "overview"


def test_what_a_view_shows_is_the_sum_that_it_says(view: Any) -> None:
    page = view("tiny")
    decomposed = """() => App.columns.filter((column) => ["conv", "output"].includes(column.type)).map((column) => {
      const view = { column: column.index, unit: 1 }, layer = App.data.model.layers[column.layer];
      const parts = Pieces.parts(layer, App.data, view, App.columns), area = column.maps ? column.shape[1] * column.shape[2] : 1;
      let worst = 0;
      for (let i = 0; i < area; i++) {
        const sum = parts.reduce((total, part) => total + (part.total ?? part.product[i]), layer.bias[1]);
        worst = Math.max(worst, Math.abs(sum - App.data.values[column.index][area + i]));
      }
      return worst;
    })"""
    assert len(found := page.evaluate(decomposed)) == 5 and max(found) <= 1e-5


def test_zero_is_the_middle_colour_and_ranges_change_no_value(view: Any) -> None:
    page = view("tiny")
    zero = page.evaluate("[Draw.color(0, 1, 'map'), Draw.color(0, 9, 'map')]")
    assert zero[0] == zero[1] == [246, 243, 236]
    before, limits = page.evaluate(OUTPUTS), page.evaluate("App.data.limits")
    page.locator("#scale").select_option("network")
    wide = page.evaluate("App.data.limits")
    assert page.evaluate(OUTPUTS) == before and len(set(wide[2:-1])) == 1 and len(set(limits[2:-1])) == 4
    assert wide[2] == max(limits[2:-1])
    page.locator("#scale").select_option("block")
    assert len(set(page.evaluate("App.data.limits")[2:-1])) == 2


def test_it_works_by_keyboard_and_by_empty_space(view: Any) -> None:
    page = view("tiny")
    assert page.evaluate(UNNAMED) == []
    page.locator(".node").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert where(page) == "neuron" and "conv_1_1, map" in page.locator("#path").inner_text()
    assert page.evaluate("document.activeElement.className").startswith("factor")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert where(page) == "formula" and "Green channel" in page.locator("#panel h3").inner_text()
    page.locator(".big").first.focus()
    before = page.locator("#panel .formula").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#panel .formula").inner_text() != before
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert where(page) == "overview" and page.evaluate("document.activeElement.className").startswith("node of-conv")
    page.locator(".node.of-output").first.click()
    assert page.locator(".softmax tbody tr").count() == 3
    page.locator("#scene").click(position={"x": 500, "y": 20})
    assert where(page) == "overview"
    page.locator(".node.of-picture").click()
    assert "picture itself" in page.locator("#status").inner_text()


def test_pointing_at_a_map_shows_where_it_comes_from(view: Any) -> None:
    page = view("tiny")
    page.locator(".node.of-conv").nth(5).hover()
    assert page.locator(".feeds").count() == 4 and page.locator(".aimed").count() == 1
    page.locator(".node.of-relu").first.hover()
    assert page.locator(".feeds").count() == 1
    assert "values from" in page.locator("#status").inner_text()


def png(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def quartered(size: tuple[int, int], side: int) -> PIL.Image.Image:
    """Blue with a middle square that is red, and lime in its top left quarter."""
    picture = PIL.Image.new("RGB", size, "blue")
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste("red", (left, top, left + side, top + side))
    picture.paste("lime", (left, top, left + side // 2, top + side // 2))
    return picture


@pytest.mark.parametrize("size", [(40, 120), (10, 10), (900, 300)])
def test_an_upload_is_cut_and_resized_neither_turned_nor_mirrored(view: Any, size: tuple[int, int]) -> None:
    page, side = view("tiny"), min(size)
    page.locator("#file").set_input_files({"name": "photo.png", "mimeType": "image/png", "buffer": png(quartered(size, side))})
    page.wait_for_selector("body[data-picture='2']")
    pixels = torch.tensor(page.evaluate("Array.from(App.data.pixels)")).reshape(3, TINY_SIZE, TINY_SIZE)
    assert int(pixels.min()) >= 0 and int(pixels.max()) <= 255
    assert pixels[:, 3, 3].tolist() == [0, 255, 0]
    assert pixels[:, 24, 3].tolist() == pixels[:, 3, 24].tolist() == pixels[:, 24, 24].tolist() == [255, 0, 0]
    assert page.locator(".sample").count() == 4 and page.locator(".sample").last.get_attribute("aria-checked") == "true"


def test_uploads_with_alpha_in_gray_and_of_no_picture(view: Any) -> None:
    page = view("gray")
    clear = PIL.Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    for number, (picture, value) in enumerate(
        [(clear, 255), (PIL.Image.new("L", (30, 30), 99), 99), (PIL.Image.new("RGB", (9, 9), "lime"), 150)]
    ):
        page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png(picture)})
        page.wait_for_selector(f"body[data-picture='{number + 2}']")
        assert set(page.evaluate("Array.from(App.data.pixels)")) == {value}
    page.locator("#file").set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    playwright.expect(page.locator("#status")).to_contain_text("notes.png is no picture")


def test_the_playground_tells_sizes_and_strides_that_do_not_fit(view: Any) -> None:
    page = view("gray")
    for values, text, valid in (
        ((5, 2, 0, 1), "= 4", "true"),
        ((5, 2, 0, 2), "does not fit", "false"),
        ((6, 2, 0, 2), "= 3", "true"),
        ((5, 3, 1, 2), "= 3", "true"),
        ((3, 6, 0, 1), "no output", "false"),
    ):
        for key, value in zip("nkps", values, strict=True):
            page.locator(f"#play-{key}").fill(str(value))
        assert text in page.locator("#play-formula").inner_text()
        assert page.locator("#play-formula").get_attribute("data-valid") == valid
    for key, value in zip("nkps", (6, 2, 0, 2), strict=True):
        page.locator(f"#play-{key}").fill(str(value))
    page.locator("#play-output button").nth(5).hover()  # row 1, column 2: input rows 2 and 3, columns 4 and 5
    inside = page.evaluate(
        "[...document.querySelectorAll('#play-input > *')].flatMap((e, i) => e.classList.contains('inside') ? [i] : [])"
    )
    assert inside == [16, 17, 22, 23]


@pytest.mark.parametrize("name", ["tiny", "hidden"])
def test_a_phone_shows_it_without_overflow(view: Any, name: str) -> None:
    page = view(name, viewport=PHONE, is_mobile=True, has_touch=True)
    last = page.evaluate("App.columns.length - 1")
    conv = page.evaluate("App.columns.findIndex((column) => column.type === 'conv')")
    for state in (
        "null",
        f"{{ column: {conv}, unit: 1, part: 0 }}",
        f"{{ column: {last}, unit: 2, part: null }}",
        f"{{ column: {last}, unit: 2, part: 0 }}",
    ):
        page.evaluate(f"App.go({state})")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], state
        assert page.evaluate(OVERFLOWING) == [], state


def test_dark_and_light_and_motion(view: Any) -> None:
    shade = "() => Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    page = view("tiny", color_scheme="dark", reduced_motion="no-preference")
    assert page.evaluate(shade) < 64 and max(page.evaluate("Draw.color(0, 1, 'map')")) < 64
    page.locator("#theme").click()
    assert page.evaluate(shade) > 192
    assert min(page.evaluate("Draw.color(0, 1, 'map')")) > 192
    page.evaluate("App.go({ column: 2, unit: 0, part: 0 })")
    page.locator("#play").focus()
    start = page.locator("#panel .formula").inner_text()
    playwright.expect(page.locator("#panel .formula")).not_to_have_text(start)
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"
    assert view("tiny").locator("#play").inner_text() == "Play", "a reader who wants no motion gets none"
