"""Probe an encoder: what simple classifiers read from its features, with all labels and with a few."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.distillation.recipe import DataSpec, Recipe
    from tutelage.systems.curriculum_designer import EncoderSettings

app = typer.Typer()


@app.command(epilog="Example: tutelage probe runs/encoder --layer layer3 --data photos/ --image-size 64 --json probe.json")
def probe(
    encoder: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder of `tutelage distill`, each seed is probed; or a network's name."),
    ],
    layer: Annotated[
        str | None,
        typer.Option(help="The layer whose output counts (maps: their mean), or in:LAYER for its input; default: logits."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled data: a built-in set's name, .npz or .safetensors, or a folder of images; default: the run's."),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="What is scored, likewise; default: the run's or the built-in set's, else a fifth of --data.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of images of a folder, in pixels.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many labelled samples.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    per_class: Annotated[int, typer.Option(min=1, help="Labels of each class in the probe of few labels.")] = 10,
    draws: Annotated[int, typer.Option(min=1, help="Random subsets of few labels, whose mean counts.")] = 5,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=value", help="Of a named network: weights, options.NAME; preprocessing.mean …."),
    ] = None,
    json: JsonOut = None,
) -> None:
    """Print the accuracy of nearest neighbours, of a linear probe, and of one on few labels, on the encoder's frozen features."""
    import statistics

    from tutelage.distillation.probes import probe_scores
    from tutelage.errors import InputError
    from tutelage.systems.curriculum_designer import encoded

    run = _recipe_of(Path(encoder))
    encoders = _encoders(encoder, run, layer, settings or [])
    if data is None and run is None:
        raise InputError("no data to probe on", where="--data", remedy="name a file, a folder, or a built-in data set")
    labelled, scored = _data(run, data, test, image_size, limit)
    found: list[dict[str, float]] = []
    with progress("probes", total=len(encoders)) as bar:
        for done, one in enumerate(encoders.values(), 1):
            network = one.build()
            features, labels = encoded(labelled, network)
            if scored is None:
                rows, rest = _held_out(len(labels))
                parts = (features[rows], labels[rows], features[rest], labels[rest])
            else:
                parts = (features, labels, *encoded(scored, network))
            found.append(probe_scores(*parts, k=min(k, len(parts[0])), per_class=per_class, draws=draws))
            bar(done, len(encoders))
    figures = {
        name: {
            "mean": statistics.fmean(one[name] for one in found),
            "sd": statistics.stdev(one[name] for one in found) if len(found) > 1 else None,
            "seeds": [one[name] for one in found],
        }
        for name in found[0]
    }
    _print(figures, json)
    facts = {"encoder": encoder, "layer": layer, "samples": len(parts[1]), "scored": len(parts[3]), "k": k, "draws": draws}
    emit({**facts, "probes": figures, **run_metadata(list(encoders))}, json)


def _recipe_of(folder: Path) -> Recipe | None:
    """The recipe of a run folder; None where it is no folder."""
    from tutelage.distillation.recipe import Recipe, read
    from tutelage.errors import InputError
    from tutelage.storage import read_json

    if not folder.is_dir():
        return None
    file = folder / "recipe.json"
    if not file.exists():
        remedy = "run `tutelage distill` again; or name the network, --set weights=…/student.safetensors"
        raise InputError("no recipe.json: the folder does not say what network its students are", where=folder, remedy=remedy)
    return read(Recipe, read_json(file), str(file))


def _encoders(name: str, run: Recipe | None, layer: str | None, settings: list[str]) -> dict[int, EncoderSettings]:
    """The encoders by seed."""
    from dataclasses import replace

    from tutelage.distillation.recipe import read_file
    from tutelage.errors import InputError
    from tutelage.systems.curriculum_designer import EncoderSettings

    given = [] if layer is None else [f'layer="{layer}"']
    if run is None:
        return {0: read_file(EncoderSettings, None, [f'model="{name}"', *given, *settings])}
    first = read_file(EncoderSettings, None, [f'model="{run.student.model}"', *given, *settings])
    files = sorted(Path(name).glob("seed-*/student.safetensors"), key=lambda file: int(file.parent.name.removeprefix("seed-")))
    if not files:
        raise InputError("the run has no student yet", where=name, remedy="let `tutelage distill` end")
    options = run.student.options | first.options
    return {int(file.parent.name.removeprefix("seed-")): replace(first, options=options, weights=str(file)) for file in files}


def _data(run: Recipe | None, data: str | None, test: str | None, image_size: int, limit: int | None) -> tuple[Any, Any]:
    """Labelled data, and what is scored (None: a part of them)."""
    from dataclasses import replace

    from tutelage.cli._recipe import classes_of, load

    def spec(text: str) -> DataSpec:
        from tutelage.distillation.recipe import DataSpec

        path = Path(text)
        if path.is_dir():
            return DataSpec(kind="folder", path=text, image_size=image_size)
        return DataSpec(file=text) if path.suffix in (".npz", ".safetensors") else DataSpec(name=text)

    chosen = spec(data) if data is not None else run.data if run is not None else spec("")
    labelled, scored = load(replace(chosen, labels=True, limit=limit or chosen.limit), "data", None)
    if test is not None:
        scored, _ = load(spec(test), "test", None, classes_of(labelled))
    elif data is None and run is not None and run.test is not None:
        scored, _ = load(run.test, "test", None, classes_of(labelled))
    return labelled, scored


def _held_out(count: int) -> tuple[Any, Any]:
    """(Four fifths, one fifth) of so many samples, in a fixed random order."""
    import torch

    from tutelage.seeds import torch_rng

    order = torch.randperm(count, generator=torch_rng(0, "probe"))
    return order[: count - count // 5], order[count - count // 5 :]


def _print(figures: dict[str, dict[str, Any]], json: str | None) -> None:
    from rich.table import Table

    table = Table("probe", "accuracy, %", "sd", "seeds", box=None)
    for name, figure in figures.items():
        sd = "" if figure["sd"] is None else f"{figure['sd']:.2f}"
        table.add_row(name, f"{figure['mean']:.2f}", sd, str(len(figure["seeds"])))
    console(json).print(table)
