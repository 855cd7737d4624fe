"""GQA and NLVR2 as one kind of thing: records that are drawn, pictures that are looked for, answers that are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from tutelage.datasets import gqa, gqa_metrics, nlvr2
from tutelage.datasets.json_records import Progress
from tutelage.errors import InputError
from tutelage.programs.answers import normalize_answer


@dataclass(frozen=True, slots=True)
class Item:
    """One question or statement. ``kind``: its detailed type; ``group``: what tables go by; ``image_id``: its images, as
    the unit to resample; ``record``: as the data set's reader gave it."""

    id: str
    text: str
    answer: str
    kind: str
    group: str
    image_id: str
    record: Any


class Dataset(Protocol):
    """A data set in its official folder. ``learns`` and ``probes`` are the splits to learn from and to judge teachers by,
    each with its subset; ``sizes``: how many records of a kind are learned from and probed with, if nobody says."""

    name: str
    inputs: tuple[str, ...]
    learns: tuple[str, str]
    probes: tuple[str, str]
    sizes: tuple[int, int]

    def items(self, split: str, subset: str, progress: Progress | None = None) -> Iterator[Item]:
        """Every record, one at a time. Raises InputError for a broken file, with file, record and field."""
        ...

    def pictures(self, item: Item) -> dict[str, Path]:
        """The paths of its pictures by program input. Raises InputError where one is not there."""
        ...

    def scores(self, items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, Any]:
        """The official metrics of what was said, by id."""
        ...


class Gqa:
    """GQA: learns from balanced train, probes with balanced val; tables go by structural type."""

    name = "gqa"
    inputs = ("IMAGE",)
    learns, probes = ("train", "balanced"), ("val", "balanced")
    sizes = (40, 5)  # of about 100 detailed types

    def __init__(self, root: str | Path):
        self.folder = gqa.GqaFolder(root)

    def items(self, split: str, subset: str, progress: Progress | None = None) -> Iterator[Item]:
        """See :class:`Dataset`."""
        path = self.folder.questions(split, cast(Literal["all", "balanced"], subset))
        for q in gqa.read_questions(path, progress=progress):
            yield Item(q.id, q.question, q.answer or "", q.detailed, q.structural, q.image_id, q)

    def pictures(self, item: Item) -> dict[str, Path]:
        """See :class:`Dataset`."""
        path = self.folder.image(item.image_id)
        if not path.is_file():
            raise InputError("no such image", where=path, remedy="images lie in images/{imageId}.jpg")
        return {"IMAGE": path}

    def scores(self, items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, Any]:
        """Accuracy, binary, open, and by type; what needs other questions, choices or attention is left out."""
        predictions = gqa_metrics.Predictions()
        for name, answer in answers.items():
            predictions.add(name, answer)
        scorer = gqa_metrics.GqaScorer(predictions)
        for item in items:
            scorer.add(item.record)
        wanted = ("accuracy", "binary", "open", "accuracyPerStructuralType", "accuracyPerSemanticType", "accuracyPerSteps")
        found = scorer.result()
        return {name: found[name] for name in wanted}

    def scene_graphs(self, split: str, image_ids: Iterable[str]) -> dict[str, gqa.SceneGraph]:
        """The scene graphs of these images. Raises InputError where the split has none."""
        wanted = set(image_ids)
        return {g.image_id: g for g in gqa.read_scene_graphs(self.folder.scene_graphs(split)) if g.image_id in wanted}


class Nlvr2:
    """NLVR2: learns from train, probes with dev; statements are of one kind."""

    name = "nlvr2"
    inputs = ("LEFT", "RIGHT")
    learns, probes = ("train", "full"), ("dev", "full")
    sizes = (4000, 500)

    def __init__(self, root: str | Path):
        self.folder = nlvr2.Nlvr2Folder(root)

    def items(self, split: str, subset: str, progress: Progress | None = None) -> Iterator[Item]:
        """See :class:`Dataset`."""
        path = self.folder.examples(split, cast(Literal["full", "balanced", "unbalanced"], subset))
        for e in nlvr2.read_examples(path):
            yield Item(e.identifier, e.sentence, "yes" if e.label else "no", "", "", e.pair, e)

    def pictures(self, item: Item) -> dict[str, Path]:
        """See :class:`Dataset`."""
        left, right = self.folder.images(item.record)
        return {"LEFT": left, "RIGHT": right}

    def scores(self, items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, Any]:
        """Accuracy and consistency."""
        found = nlvr2.score(
            [item.record for item in items], {name: normalize_answer(answer) == "yes" for name, answer in answers.items()}
        )
        return {name: found[name] for name in ("accuracy", "consistency", "groups")}
