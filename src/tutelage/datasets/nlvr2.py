"""NLVR2 (Suhr et al. 2019): reader, the official folder, accuracy and consistency."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tutelage.datasets.json_records import JsonRecord, is_id, lines
from tutelage.errors import InputError

_IDENTIFIER = re.compile(r"(train|dev|test1|test2)-(\d+)-(\d+)-(\d+)")
_LABELS = MappingProxyType({"true": True, "false": False})
_CSV_REMEDY = "a line is identifier,True or identifier,False: dev-12-0-1,True"


@dataclass(frozen=True, slots=True)
class Nlvr2Example:
    """A sentence about a pair of images, and whether it is true of them (``label`` is None where it is hidden)."""

    identifier: str
    sentence: str
    label: bool | None
    left_url: str
    right_url: str
    synset: str | None = None
    query: str | None = None
    directory: str | None = None

    @property
    def split(self) -> str:
        """train, dev, test1 or test2."""
        return self.identifier.partition("-")[0]

    @property
    def pair(self) -> str:
        """The pair of images, ``split-set-pair``; its images are the unit to resample."""
        return self.identifier.rpartition("-")[0]

    @property
    def group(self) -> tuple[str, str, str]:
        """(split, set, sentence): the examples that share a sentence, whatever their pair."""
        return group_of(self.identifier)

    @property
    def image_names(self) -> tuple[str, str]:
        """File names of the left and the right image; the content may be other than PNG."""
        return f"{self.pair}-img0.png", f"{self.pair}-img1.png"


def group_of(identifier: str) -> tuple[str, str, str]:
    """(split, set, sentence) of an identifier ``split-set-pair-sentence``.

    Raises:
        InputError: not an identifier.
    """
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        raise InputError(f"bad identifier {identifier!r}", remedy="an identifier is split-set-pair-sentence: dev-12-0-1")
    split, pair_set, _, sentence = match.groups()
    return split, pair_set, sentence


def read_examples(path: str | Path, *, labelled: bool = True) -> Iterator[Nlvr2Example]:
    """Yield the examples of a JSON-lines file, holding one line at a time; ``labelled=False`` asks for no labels.

    Raises:
        InputError: the file is absent, a line is cut, or a field is missing or wrong; line and field are named.
    """
    for number, value in lines(path):
        yield _example(JsonRecord(value, f"{path}:{number}"), labelled)


def _example(record: JsonRecord, labelled: bool) -> Nlvr2Example:
    identifier = record.text("identifier")
    if not _IDENTIFIER.fullmatch(identifier):
        raise record.error("identifier", "split-set-pair-sentence, such as dev-12-0-1")
    directory = record.value.get("directory")
    if directory is not None and not is_id(str(directory)):
        raise record.error("directory", "a number or a folder name")
    return Nlvr2Example(
        identifier=identifier,
        sentence=record.text("sentence"),
        label=record.one_of("label", ("True", "False")) == "True" if labelled else None,
        left_url=record.text("left_url"),
        right_url=record.text("right_url"),
        synset=record.optional_text("synset"),
        query=record.optional_text("query"),
        directory=None if directory is None else str(directory),
    )


class Nlvr2Folder:
    """The official folder: JSON-lines files (in the root or in ``data``) and images below ``images`` or the root.

    Images of train lie in ``train/{directory}/``, those of the other splits in ``{split}/``.

    Raises:
        InputError: the root is not a folder; each method: what it looks for is not there.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError("no such folder", where=self.root, remedy="name the folder that holds NLVR2")

    def examples(self, split: str, subset: Literal["full", "balanced", "unbalanced"] = "full") -> Path:
        """The JSON-lines file of ``split``; dev and the tests also have a balanced and an unbalanced subset."""
        names = [f"{split}.json"] if subset == "full" else [f"{subset}/{subset}_{split}.json", f"{subset}/{split}.json"]
        for place in (self.root, self.root / "data"):
            for name in names:
                if (file := place / name).is_file():
                    return file
        raise InputError(f"no {names[0]} in the folder", where=self.root, remedy="looked in it and in data")

    def images(self, example: Nlvr2Example) -> tuple[Path, Path]:
        """Where the left and the right image of ``example`` lie; the content may be other than PNG."""
        if example.split == "train" and example.directory is None:
            raise InputError("a train example has no directory", where=example.identifier, remedy="use the official train.json")
        inner = Path(example.split) / example.directory if example.directory is not None else Path(example.split)
        left, right = example.image_names
        for place in (self.root / "images" / inner, self.root / inner, self.root / "images"):
            if (place / left).is_file() and (place / right).is_file():
                return place / left, place / right
        raise InputError(
            f"no {left} and {right}",
            where=self.root / "images" / inner,
            remedy="images lie in images/{split}, or {split}",
        )

    def missing_images(self, examples: Iterable[Nlvr2Example]) -> list[str]:
        """The pairs, sorted, of which an image is not there."""
        missing = set()
        for example in examples:
            try:
                self.images(example)
            except InputError:
                missing.add(example.pair)
        return sorted(missing)


def read_predictions(path: str | Path) -> dict[str, bool]:
    """Read ``identifier,label`` lines (labels True or False in any case; a head line of these two words is allowed).

    Raises:
        InputError: the file is absent, or a line is wrong or doubled; the line is named.
    """
    predictions: dict[str, bool] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in row]
                if not any(cells) or (number == 1 and cells == ["identifier", "label"]):
                    continue
                where = f"{path}:{number}"
                if len(cells) != 2 or not _IDENTIFIER.fullmatch(cells[0]) or cells[1].lower() not in _LABELS:
                    raise InputError(f"not identifier,label: {','.join(row)[:80]!r}", where=where, remedy=_CSV_REMEDY)
                if cells[0] in predictions:
                    raise InputError(f"{cells[0]} is answered twice", where=where, remedy="keep one line an example")
                predictions[cells[0]] = _LABELS[cells[1].lower()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not CSV text: {error}", where=path, remedy=_CSV_REMEDY) from error
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the path and its rights") from error
    return predictions


def score(
    examples: Iterable[Nlvr2Example],
    predictions: Mapping[str, bool],
    *,
    missing: Literal["error", "wrong"] = "error",
    unknown: Literal["error", "count"] = "error",
) -> dict[str, Any]:
    """NLVR2's official accuracy and consistency in percent, and what they were counted from.

    Consistency is the share of (split, set, sentence) groups, the pair left out, in which every pair is right.

    Raises:
        InputError: no examples, an example without label or appearing twice; predictions that are missing, or that
            answer no example, where the policies say error.
    """
    groups: dict[tuple[str, str, str], bool] = {}
    seen: set[str] = set()
    absent: list[str] = []
    right = 0
    for example in examples:
        name = example.identifier
        if example.label is None or name in seen:
            reason = "no label to score against" if example.label is None else "the example appears twice"
            raise InputError(reason, where=f"example {name}", remedy="use a labelled official file")
        seen.add(name)
        if name not in predictions:
            absent.append(name)
        correct = predictions.get(name) == example.label
        right += correct
        groups[example.group] = groups.get(example.group, True) and correct
    if not seen:
        raise InputError("there are no examples to score", where="examples")
    if absent and missing == "error":
        raise InputError(
            f"{len(absent)} examples have no prediction, such as {', '.join(absent[:3])}",
            where="predictions",
            remedy="predict every example, or count missing ones as wrong",
        )
    strangers = [name for name in predictions if name not in seen]
    if strangers and unknown == "error":
        raise InputError(
            f"{len(strangers)} predictions answer no example of the file, such as {strangers[0]}",
            where="predictions",
            remedy="score against the file that was predicted, or let unknown ones be counted",
        )
    return {
        "accuracy": 100 * right / len(seen),
        "consistency": 100 * sum(groups.values()) / len(groups),
        "examples": len(seen),
        "groups": len(groups),
        "missingPredictions": len(absent),
        "unknownPredictions": len(strangers),
    }
