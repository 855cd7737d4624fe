"""Write a web page that runs a small convolutional network and explains every number of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from torch import nn

app = typer.Typer()

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
MOST_PICTURES = 12


@app.command(epilog="Example: tutelage explain student.safetensors --image cat.jpg --image dog.jpg --classes cat,dog")
def explain(
    model: Annotated[
        Path | None,
        typer.Argument(help="Weights (safetensors). Without them a TinyVGG is trained on drawn shapes first, in about a minute."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.py:NAME",
            help="What the weights are of: a network by name, as in a recipe, or your own class or function (the file runs as "
            "trusted code); default: a TinyVGG of the sizes that the weights have.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the network; may be repeated.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help=f"A picture, or a folder of which the first {MOST_PICTURES} are shown; repeatable.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,…|FILE", help="Class names in the order of the outputs, or a file with one a line.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explainer.html"),
    title: Annotated[str | None, typer.Option(help="Its heading.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the network's input in pixels; default: what fits.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Subtracted from pixels in 0..1: a number, or one a channel: 0.49,0.48,0.45.")] = "0",
    std: Annotated[str, typer.Option(help="What that is divided by.")] = "1",
    seed: Annotated[int, typer.Option(help="Of the training on shapes.")] = 0,
    screenshot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Also a picture of the page (extra dev, and a Chromium).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", hidden=True, help="Hardly any training, for tests.")] = False,
    json: JsonOut = None,
) -> None:
    """Write one HTML file that runs a small CNN in the browser: all layers, one map as a sum, one number as a formula."""
    from tutelage.systems.cnn_explainer import CNNExplainer
    from tutelage.systems.cnn_explainer.browser import picture_of_page

    names = None if classes is None else _class_names(classes)
    pictures: list[Any] = _pictures(image or [])
    if model is None and network is None:
        from tutelage.systems.cnn_explainer import shapes

        with progress("training on shapes") as bar:
            count, epochs = (64, 1) if quick else (2000, 10)
            found: nn.Module = shapes.train_on_shapes(seed, count, epochs, bar)
        names = names or list(shapes.CLASS_NAMES)
        pictures = pictures or list(shapes.shape_pictures(seed + 1, len(names)).inputs)
    else:
        found = _network(model, network, option or [], image_size)
    if names is None:
        names = [f"class {number}" for number in range(_outputs(found))]
    page = CNNExplainer(
        found, pictures, names, title=title, image_size=image_size, mean=_numbers("--mean", mean), std=_numbers("--std", std)
    )
    page.write(out)
    size = out.stat().st_size
    screen = console(json)
    screen.print(
        f"{out}: {len(page.layers)} layers, {page.parameters:,} parameters, {len(page.pixels)} pictures, {size / 1024:.0f} KiB",
        soft_wrap=True,
    )
    if screenshot is not None:
        screen.print(f"picture of it: {picture_of_page(out, screenshot)}", soft_wrap=True)
    figures = {"page": out, "bytes": size, "parameters": page.parameters, "layers": [layer.name for layer in page.layers]}
    emit(figures | {"classes": page.class_names, "pictures": len(page.pixels)} | run_metadata([seed]), json)


def _network(model: Path | None, network: str | None, options: list[str], image_size: int | None) -> nn.Module:
    """The network that ``--network`` names, with the weights of the file."""
    from torch import nn

    from tutelage.cli._user_code import is_user_code, user_object
    from tutelage.distillation.export import load_weights
    from tutelage.distillation.recipe import ModelSpec
    from tutelage.distillation.resolve import build_model
    from tutelage.errors import InputError
    from tutelage.systems.cnn_explainer.weights import tiny_vgg_from_weights

    settings = dict(map(_setting, options))
    if network is None:
        if settings:
            raise InputError("options of no network", where="--set", remedy="name the network: --network tiny-vgg")
        assert model is not None
        return tiny_vgg_from_weights(model, image_size)
    if not is_user_code(network):
        return build_model(ModelSpec(network, settings, None if model is None else str(model)))
    found = user_object(network)
    try:
        found = found if isinstance(found, nn.Module) else found(**settings)
    except Exception as error:
        raise InputError(f"cannot be built: {type(error).__name__}: {error}", where=network, remedy="check --set") from error
    if not isinstance(found, nn.Module):
        raise InputError(f"a {type(found).__name__}, no torch.nn.Module", where=network, remedy="name a class or a function")
    return found if model is None else load_weights(found, model)


def _setting(text: str) -> tuple[str, Any]:
    import json

    from tutelage.errors import InputError

    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise InputError(f"{text!r} is no NAME=VALUE", where="--set", remedy="such as --set channels=16")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _outputs(network: nn.Module) -> int:
    from tutelage.systems.cnn_explainer import read_layers

    weight = read_layers(network)[-1].weight
    return 0 if weight is None else len(weight)


def _class_names(text: str) -> list[str]:
    from tutelage.reading import read_bytes

    path = Path(text)
    if "," not in text and path.is_file():
        return [line.strip() for line in read_bytes(path, 1 << 20).decode("utf-8", "replace").splitlines() if line.strip()]
    return [name.strip() for name in text.split(",")]


def _pictures(paths: list[Path]) -> list[Path]:
    from tutelage.errors import InputError

    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        if not inside:
            raise InputError("no picture in the folder", where=path, remedy=f"it may hold {', '.join(PICTURES)}")
        found += inside[:MOST_PICTURES]
    return found


def _numbers(name: str, text: str) -> float | list[float]:
    from tutelage.errors import InputError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no number", where=name, remedy="such as 0.5, or 0.49,0.48,0.45") from None
    return values[0] if len(values) == 1 else values
