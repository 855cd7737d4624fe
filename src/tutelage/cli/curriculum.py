"""Design the order in which classes are taught one at a time, and measure what orders are worth."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(no_args_is_help=True)
MOST_MEASURED = 5
"""Up to so many classes `run` measures every order."""


class Distance(StrEnum):
    """How far two classes are apart: ``design.DISTANCES``."""

    cosine = "cosine"
    euclidean = "euclidean"
    transport = "transport"


class LearnerName(StrEnum):
    """What is done against forgetting: ``learners.LEARNERS``."""

    naive = "naive"
    ewc = "ewc"
    lwf = "lwf"
    si = "si"
    replay = "replay"


Encoder = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A fixed encoder: a backbone's name, timm:NAME or hf:NAME; default: the inputs themselves."),
]
EncoderSetting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="a.b=value", help="Of the encoder: weights, layer, options.NAME, preprocessing.mean …; may be repeated."
    ),
]
ImageSize = Annotated[int, typer.Option(min=1, help="Height and width of images of a folder, in pixels.")]
DistanceOption = Annotated[Distance, typer.Option(help="Between classes.")]


@app.callback()
def group() -> None:
    """The order in which classes are taught one at a time: designed from their similarity, or measured."""


@app.command(
    epilog="Example: tutelage curriculum design images/ --encoder hf:microsoft/resnet-18 --out orders.jsonl --picture d.svg"
)
def design(
    source: Annotated[
        Path, typer.Argument(help="A folder with a sub-folder of images a class; .npz or .safetensors; or .csv of distances.")
    ],
    encoder: Encoder = None,
    settings: EncoderSetting = None,
    image_size: ImageSize = 64,
    distance: DistanceOption = Distance.cosine,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="The rows of a .csv are normalised; they stay as they are.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many orders.")] = 10,
    beam: Annotated[int, typer.Option(min=1, help="Width of the search beyond 7 classes; 1 is greedy.")] = 64,
    out: Annotated[Path | None, typer.Option(help="The orders, as JSON lines.")] = None,
    distances: Annotated[Path | None, typer.Option(help="The normalised distances, as CSV.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The normalised distances, as an SVG heat map.")] = None,
    json: JsonOut = None,
) -> None:
    """Print the orders of the highest score: all are scored for at most 7 classes, else a beam search builds them."""
    from tutelage.reports.pictures import heat_map
    from tutelage.storage import write_text
    from tutelage.systems.curriculum_designer import CurriculumDesigner, read_distances, write_distances, write_orders

    if source.suffix == ".csv":
        designer = CurriculumDesigner(*read_distances(source), normalized=normalized)
    else:
        features, labels, names = _features(source, encoder, settings, image_size)
        designer = CurriculumDesigner.from_features(features, labels, names, distance.value)
    orders = designer.rank(top, beam)
    if out is not None:
        write_orders(out, orders, designer)
    if distances is not None:
        write_distances(distances, designer)
    if picture is not None:
        title = "Distances between classes (rows sum to 1)"
        write_text(picture, heat_map(title, designer.names, designer.names, designer.distances.tolist(), digits=3))
    screen = console(json)
    for one in orders:
        screen.print(f"{one.score:.4f}  {' > '.join(designer.named(one.order))}", markup=False, soft_wrap=True)
    rows = [{"order": designer.named(one.order), "score": one.score} for one in orders]
    centralities = dict(zip(designer.names, designer.v.tolist(), strict=True))
    emit({"orders": rows, "centrality": centralities, "distances": designer.distances, **run_metadata([])}, json)


@app.command(
    epilog="Example: tutelage curriculum run images/ --encoder hf:microsoft/resnet-18 --learner replay --picture orders.svg"
)
def run(
    source: Annotated[Path, typer.Argument(help="A folder with a sub-folder of images a class, or .npz or .safetensors.")],
    encoder: Encoder = None,
    settings: EncoderSetting = None,
    image_size: ImageSize = 64,
    learner: Annotated[LearnerName, typer.Option(help="What is done against forgetting.")] = LearnerName.replay,
    orders: Annotated[Path | None, typer.Option(help="JSON lines of orders; default: all (to 5 classes), or the designed.")] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Training samples a class; default: three quarters.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Test samples a class; default: a quarter.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each with its own samples.")] = 3,
    lr: Annotated[float, typer.Option(min=0, help="Of a linear head on the features, by SGD.")] = 0.1,
    batch_size: Annotated[int, typer.Option(min=1, help="New samples a step; each is seen once.")] = 12,
    distance: DistanceOption = Distance.cosine,
    top: Annotated[int, typer.Option(min=1, help="How many orders are printed and drawn.")] = 10,
    out: Annotated[Path | None, typer.Option(help="What was measured of every order, as JSON lines.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The best and the worst orders with intervals, as SVG.")] = None,
    json: JsonOut = None,
) -> None:
    """Learn the classes online in many orders: a linear head on fixed features, every sample once. Then rank the orders by F.

    Prints whether the ranking is stable over seeds, and whether the designed score agrees with it.
    """
    import numpy as np

    from tutelage.datasets.confidence_intervals import t_interval
    from tutelage.datasets.rank_correlation import recall_at_k, spearman
    from tutelage.reports.pictures import ranking
    from tutelage.storage import write_json_lines, write_text
    from tutelage.systems.curriculum_designer import CurriculumDesigner, all_orders, read_orders, stable_share

    features, labels, names = _features(source, encoder, settings, image_size)
    designer = CurriculumDesigner.from_features(features, labels, names, distance.value)
    if orders is not None:
        chosen = np.array(read_orders(orders, names))
    elif designer.count <= MOST_MEASURED:
        chosen = all_orders(designer.count)
    else:
        chosen = np.array([one.order for one in designer.rank(100)])
    least = int(labels.bincount().min())
    tests = test or max(1, least // 4)
    split = (train or max(1, least - tests), tests)
    with progress(f"learning {designer.count} classes in {len(chosen)} orders", total=seeds) as bar:
        worth = [_measured(features, labels, chosen, split, learner, lr, batch_size, seed, bar, seeds) for seed in range(seeds)]
    merit = np.stack([one[0] for one in worth])
    scores, mean = designer.score(chosen), merit.mean(0)
    places = np.argsort(-mean, kind="stable").tolist()
    intervals = [t_interval(merit[:, place]) for place in range(len(chosen))]
    known = seeds > 1
    rows = [
        {
            "order": designer.named(chosen[place].tolist()),
            "F": intervals[place].mean,
            "low": intervals[place].low if known else None,
            "high": intervals[place].high if known else None,
            "accuracy": float(np.mean([one[1][place] for one in worth])),
            "forgetting": float(np.mean([one[2][place] for one in worth])),
            "score": float(scores[place]),
        }
        for place in places
    ]
    agreement: dict[str, float] = {}
    if len(chosen) > 1:
        k = max(1, len(chosen) // 10)
        agreement = {"spearman": spearman(scores, mean), "recall": recall_at_k(scores, mean, k), "chance": k / len(chosen)}
        if known:
            agreement["stable share"] = stable_share(merit)
    if out is not None:
        write_json_lines(out, rows)
    shown = rows if len(rows) <= 2 * top else [*rows[:top], *rows[-top:]]
    if picture is not None:
        labels_of = [" > ".join(row["order"]) for row in shown]
        columns = [[row[name] for row in shown] for name in ("F", "low", "high")]
        title = f"Orders of {designer.count} classes, learner {learner.value}"
        write_text(picture, ranking(title, f"F, mean of {seeds} seeds, 95 % t-interval", labels_of, *columns))
    _print(shown, agreement, json)
    emit({"orders": rows, "agreement": agreement, "learner": learner.value, **run_metadata(list(range(seeds)))}, json)


def _measured(
    features: Tensor, labels: Tensor, orders: Any, split: tuple[int, int], name: LearnerName, lr: float, batch_size: int,
    seed: int, bar: Any, seeds: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """F, A and G of all orders, of one seed."""
    from torch import nn

    from tutelage.systems.curriculum_designer import LEARNERS, ClassData, OnlineSettings, merits, online_run

    data = ClassData.split(features, labels, *split, seed)
    head = nn.Linear(features.shape[1], len(data.train))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    found = merits(online_run(head, data, orders, LEARNERS[name.value], OnlineSettings(lr, batch_size, "sgd"), seed))
    bar(seed + 1, seeds)
    return found.merit, found.accuracy, found.forgetting


def _features(source: Path, encoder: str | None, settings: list[str] | None, image_size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Features [n, d] of a folder or a file, labels [n] numbered from 0, and the names of the classes."""
    from tutelage.distillation.data.sources import image_folder
    from tutelage.distillation.recipe import DataSpec, read_file
    from tutelage.distillation.resolve import load_data
    from tutelage.errors import InputError
    from tutelage.systems.curriculum_designer import EncoderSettings, encoded

    if encoder is None and settings:
        raise InputError("settings of an encoder, but no encoder", where="--set", remedy="--encoder NAME")
    model = None if encoder is None else read_file(EncoderSettings, None, [f'model="{encoder}"', *(settings or ())]).build()
    data: Any
    if source.is_dir():
        data = image_folder(source, image_size)
        names = list(data.dataset.classes)
    else:
        data, names = load_data(DataSpec(file=str(source))), []
    with progress("features"):
        features, labels = encoded(data, model)
    present, numbers = labels.unique(return_inverse=True)
    return features, numbers, [names[one] if names else str(one) for one in present.tolist()]


def _print(rows: list[dict[str, Any]], agreement: dict[str, float], json: str | None) -> None:
    from rich.table import Table

    table = Table("order", "F", "95 %", "A, %", "G, %", "designed score", box=None)
    for row in rows:
        bounds = "–" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        shares = (f"{100 * row[name]:.1f}" for name in ("accuracy", "forgetting"))
        table.add_row(" > ".join(row["order"]), f"{row['F']:.3f}", bounds, *shares, f"{row['score']:.4f}")
    screen = console(json)
    screen.print(table)
    if agreement:
        line = f"designed score and F: Spearman {agreement['spearman']:+.2f}, recall of the best tenth {agreement['recall']:.2f}"
        screen.print(f"{line} (by chance {agreement['chance']:.2f})", markup=False, soft_wrap=True)
    if "stable share" in agreement:
        screen.print(
            f"share of F's variance between orders that is stable over seeds: {agreement['stable share']:.2f}", markup=False
        )
