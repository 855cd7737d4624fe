"""GQA (Hudson and Manning 2019, version 1.2): streaming readers, and the official folder.

Every reader holds one record at a time, whatever the size of the file, and checks each field at the door. A file of
questions may be one JSON object or a folder of chunks, as the official training questions are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.datasets.json_records import REMEDY, JsonRecord, Progress, is_id, members
from tutelage.errors import InputError

STRUCTURAL_TYPES = ("verify", "query", "choose", "logical", "compare")
ANNOTATED = ("question", "answer", "fullAnswer")
SEMANTIC_TYPES = ("obj", "attr", "cat", "rel", "global")


@dataclass(frozen=True, slots=True)
class GqaStep:
    """One operation of a question's functional program; ``dependencies`` are indices of earlier operations."""

    operation: str
    argument: str
    dependencies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GqaQuestion:
    """One question. In the hidden test splits ``answer`` is None and the fields after it are empty.

    ``annotations`` maps question, answer and fullAnswer to {word index "i" or span "i:j": object id}; None if the file has none.
    """

    id: str
    image_id: str
    question: str
    is_balanced: bool
    answer: str | None = None
    full_answer: str | None = None
    structural: str = ""
    semantic_type: str = ""
    detailed: str = ""
    global_group: str | None = None
    local_group: str | None = None
    entailed: tuple[str, ...] = ()
    equivalent: tuple[str, ...] = ()
    annotations: dict[str, dict[str, str]] | None = None
    semantic: tuple[GqaStep, ...] = ()
    semantic_text: str = ""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An annotated object: box in pixels (top-left corner, width, height), attributes, and (relation, object id)."""

    id: str
    name: str
    x: float
    y: float
    w: float
    h: float
    attributes: tuple[str, ...]
    relations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """The objects of one image of ``width`` x ``height`` pixels, by object id."""

    image_id: str
    width: float
    height: float
    objects: dict[str, SceneObject]
    location: str | None = None
    weather: str | None = None


def read_questions(path: str | Path, *, annotated: bool = True, progress: Progress | None = None) -> Iterator[GqaQuestion]:
    """Yield the questions of ``path`` (a file or a folder of chunks) in order, holding one at a time.

    ``annotated=False`` reads files without answers, such as the hidden test splits. The field ``annotations``, which many
    copies of the files leave out, may be absent.

    Raises:
        InputError: a broken file, or a field that is missing or wrong; file, question id and field are named.
    """
    for chunk, key, value in members(path, progress):
        yield _question(key, JsonRecord(value, f"{chunk}: question {key}"), annotated)


def _question(key: str, record: JsonRecord, annotated: bool) -> GqaQuestion:
    image_id, question, balanced = record.name("imageId"), record.text("question"), record.flag("isBalanced")
    if not annotated:
        return GqaQuestion(key, image_id, question, balanced)
    if not {"answer", "types", "semantic"} & set(record.value):
        remedy = "choose a split with answers; `tutelage eval gqa --submission FILE.json` writes what the test server takes"
        raise InputError("a question of a hidden test split, without an answer", where=record.where, remedy=remedy)
    types, groups = record.record("types"), record.record("groups")
    annotations = record.record("annotations") if record.value.get("annotations") is not None else None
    steps = record.records("semantic")
    return GqaQuestion(
        id=key,
        image_id=image_id,
        question=question,
        is_balanced=balanced,
        answer=record.text("answer"),
        full_answer=record.text("fullAnswer"),
        structural=types.one_of("structural", STRUCTURAL_TYPES),
        semantic_type=types.one_of("semantic", SEMANTIC_TYPES),
        detailed=types.text("detailed"),
        global_group=groups.optional_text("global"),
        local_group=groups.optional_text("local"),
        entailed=record.texts("entailed"),
        equivalent=record.texts("equivalent"),
        annotations=None
        if annotations is None
        else {field: _pointers(annotations, field) for field in ("question", "answer", "fullAnswer")},
        semantic=tuple(_step(step, len(steps)) for step in steps),
        semantic_text=record.text("semanticStr"),
    )


def _pointers(annotations: JsonRecord, field: str) -> dict[str, str]:
    pointers = annotations.record(field)
    return {words: pointers.name(words) for words in pointers.value}


def _step(record: JsonRecord, count: int) -> GqaStep:
    dependencies = record.value.get("dependencies")
    if not isinstance(dependencies, list) or not all(type(d) is int and 0 <= d < count for d in dependencies):
        raise record.error("dependencies", f"a list of step numbers below {count}")
    return GqaStep(record.text("operation"), record.text("argument"), tuple(dependencies))


def read_scene_graphs(path: str | Path, *, progress: Progress | None = None) -> Iterator[SceneGraph]:
    """Yield the scene graphs of ``path`` in order, holding one at a time.

    Raises:
        InputError: a broken file, or a field that is missing or wrong; file, image id and field are named.
    """
    for chunk, key, value in members(path, progress):
        record = JsonRecord(value, f"{chunk}: image {key}")
        objects = record.record("objects")
        yield SceneGraph(
            image_id=key,
            width=record.number("width", above=0),
            height=record.number("height", above=0),
            objects={name: _object(name, objects.record(name)) for name in objects.value},
            location=record.optional_text("location"),
            weather=record.optional_text("weather"),
        )


def _object(key: str, record: JsonRecord) -> SceneObject:
    x, y, w, h = (record.number(field) for field in ("x", "y", "w", "h"))
    relations = tuple((relation.text("name"), relation.name("object")) for relation in record.records("relations"))
    return SceneObject(key, record.text("name"), x, y, w, h, record.texts("attributes"), relations)


def read_choices(path: str | Path, *, progress: Progress | None = None) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield (question id, valid answers, plausible answers) of a choices file, holding one question at a time.

    Raises:
        InputError: a broken file, or a field that is missing or wrong; file, question id and field are named.
    """
    for chunk, key, value in members(path, progress):
        record = JsonRecord(value, f"{chunk}: question {key}")
        yield key, record.texts("valid"), record.texts("plausible")


class GqaFolder:
    """The official folder: questions, scene graphs, choices and ``images/{imageId}.jpg`` below one root.

    Files are looked for in the root itself and in the sub-folders that the official archives make.

    Raises:
        InputError: the root is not a folder; each method: the file is not there.
    """

    PLACES = ("", "questions", "questions1.2", "sceneGraphs", "choices", "eval")

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError("no such folder", where=self.root, remedy="name the folder that holds GQA")

    def questions(self, split: str, subset: Literal["all", "balanced"] = "balanced") -> Path:
        """The questions of ``split``: one JSON file, or a folder of chunks."""
        return self._find(f"{split}_{subset}_questions", chunked=True)

    def scene_graphs(self, split: str) -> Path:
        """The scene graphs of train or val (GQA publishes none for testdev and test)."""
        return self._find(f"{split}_sceneGraphs")

    def choices(self, split: str) -> Path:
        """The valid and plausible answers of ``split``."""
        return self._find(f"{split}_choices")

    def image(self, image_id: str) -> Path:
        """Where the image lies, or would lie."""
        if not is_id(image_id):
            raise InputError(f"bad image id {image_id!r}", where=self.root, remedy=REMEDY)
        return self.root / "images" / f"{image_id}.jpg"

    def missing_images(self, image_ids: Iterable[str]) -> list[str]:
        """The ids, sorted, whose image is not there."""
        return sorted(image_id for image_id in set(image_ids) if not self.image(image_id).is_file())

    def _find(self, stem: str, chunked: bool = False) -> Path:
        for place in self.PLACES:
            base = self.root / place
            if (file := base / f"{stem}.json").is_file():
                return file
            if chunked and (base / stem).is_dir():
                return base / stem
        raise InputError(
            f"no {stem}.json in the folder", where=self.root, remedy=f"looked in it and in {', '.join(self.PLACES[1:])}"
        )
