"""Synthetic scenes written out in the exact file layouts of GQA 1.2 and NLVR2.

The same readers and official metrics then serve the world and the real data sets. Records are streamed to the files,
so memory does not grow with their number.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from tutelage.datasets.synthetic.nlvr_statements import make_set
from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.questions.base import AnswerBalancer, SceneQuestion, object_id, pointers
from tutelage.datasets.synthetic.questions.spatial import PREDICATES
from tutelage.datasets.synthetic.render import render
from tutelage.datasets.synthetic.scene import Scene, make_scene
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import derive
from tutelage.storage import atomic_write, write_bytes

Progress = Callable[[float, float | None], None]
"""Called with (done, total) as pictures are written."""

GQA_SPLITS = ("train", "val", "testdev", "test")
GQA_CHUNKS = 10
"""Files that all training questions are spread over, as in the official data."""
NLVR2_SPLITS = ("train", "dev", "test1", "test2")
NLVR2_DIRECTORIES = 100
"""Directories that training pairs are spread over."""
DOMAIN = "B"
_QUESTION_TYPES = tuple(kind for kind in QUESTION_TYPES if kind != "shape query")


def make(out: str | Path, layout: str, seed: int, images: int, progress: Progress | None = None) -> Path:
    """Write the world in ``layout`` (gqa or nlvr2): ``images`` images, or pairs of images, a split.

    Equal arguments give equal bytes. Each file appears whole or not at all.

    Raises:
        InputError: an unknown layout, or fewer than one image.
        StorageError: the folder cannot be written.
    """
    layouts = {"gqa": write_gqa, "nlvr2": write_nlvr2}
    if layout not in layouts:
        raise InputError(f"unknown layout {layout!r}", remedy=did_you_mean(layout, list(layouts)))
    if images < 1:
        raise InputError(f"{images} images a split", where="images", remedy="ask for 1 or more")
    layouts[layout](out, seed, images, progress=progress)
    return Path(out)


def write_gqa(out: str | Path, seed: int, images: int, domain: str = DOMAIN, *, progress: Progress | None = None) -> None:
    """Write ``images`` images a split with about ten questions each, in GQA's layout.

    {train|val|testdev|test}_{all|balanced}_questions.json (train_all: a folder of chunks; test: no answers),
    {train|val}_sceneGraphs.json, {train|val|testdev}_choices.json, images/{imageId}.jpg.

    Raises:
        StorageError: the folder cannot be written.
    """
    out, total = Path(out), images * len(GQA_SPLITS)
    for number, split in enumerate(GQA_SPLITS):
        stream = derive(seed, "export", "gqa", split)
        rng, balance = np.random.default_rng(stream), AnswerBalancer()
        with ExitStack() as files:

            def members(name: str, wanted: bool = True, files: ExitStack = files) -> JsonMemberWriter | None:
                return files.enter_context(JsonMemberWriter(out / f"{name}.json")) if wanted else None

            parts = [f"/{split}_all_questions_{i}" for i in range(GQA_CHUNKS)] if split == "train" else [""]
            everything = [members(f"{split}_all_questions{part}") for part in parts]
            balanced = members(f"{split}_balanced_questions")
            graphs = members(f"{split}_sceneGraphs", split in ("train", "val"))
            choices = members(f"{split}_choices", split != "test")
            for index in range(images):
                scene = make_scene(stream, index, domain, name=f"{number + 1}{index:06d}")
                scene_questions = list(_questions(scene, balance, rng))
                for question, is_balanced in scene_questions:
                    record = gqa_record(question, is_balanced, [other for other, _ in scene_questions])
                    if split == "test":
                        record = {key: record[key] for key in ("imageId", "question", "isBalanced")}
                    _add(everything[index % len(everything)], question.id, record)
                    _add(balanced if is_balanced else None, question.id, record)
                    _add(choices, question.id, _choices(question))
                _add(graphs, scene.id, scene_graph(scene))
                write_bytes(out / "images" / f"{scene.id}.jpg", _encoded(scene, "JPEG", quality=97, subsampling=0))
                if progress is not None:
                    progress(number * images + index + 1, total)


def _questions(scene: Scene, balance: AnswerBalancer, rng: np.random.Generator) -> Iterator[tuple[SceneQuestion, bool]]:
    """Questions of every kind, with whether each is in the balanced subset; some are asked in two ways."""
    texts: set[str] = set()
    for kind in _QUESTION_TYPES:
        drafts = list(QUESTION_TYPES[kind](scene, rng))
        if not drafts:
            continue
        level = balance.take(drafts, rng)
        other = drafts[int(rng.integers(len(drafts)))]
        for draft, is_balanced in ((level, True), (other, False), (level, False)):
            if draft is None:
                continue
            question = draft.build(rng, f"{scene.id}{len(texts):02d}")
            if question.text not in texts:
                texts.add(question.text)
                yield question, is_balanced


def gqa_records(seed: int, images: int, domain: str = DOMAIN) -> Iterator[list[tuple[str, dict[str, Any], dict[str, list[str]]]]]:
    """Scene by scene (id, record, choices) of each question of ``images`` scenes, as :func:`write_gqa` writes them."""
    stream = derive(seed, "export", "gqa", "records")
    rng, balance = np.random.default_rng(stream), AnswerBalancer()
    for index in range(images):
        scene_questions = list(_questions(make_scene(stream, index, domain), balance, rng))
        siblings = [other for other, _ in scene_questions]
        yield [(question.id, gqa_record(question, level, siblings), _choices(question)) for question, level in scene_questions]


def gqa_record(question: SceneQuestion, is_balanced: bool, siblings: Sequence[SceneQuestion]) -> dict[str, Any]:
    """A question as GQA writes it; ``siblings`` are all questions about its image, itself among them.

    A question entails those whose answer follows from the facts that it and its answer give away; questions with one
    functional program are equivalent.
    """
    full = question.full_answer
    return {
        "semantic": [
            {"operation": op.operation, "argument": op.argument, "dependencies": list(op.dependencies)} for op in question.semantic
        ],
        "entailed": [
            other.id for other in siblings if other is not question and other.depends_on and other.depends_on <= question.gives_away
        ],
        "equivalent": [other.id for other in siblings if other.semantic == question.semantic],
        "question": question.text,
        "imageId": question.image_id,
        "isBalanced": is_balanced,
        "groups": {"global": question.group, "local": question.topic},
        "answer": question.answer,
        "semanticStr": "->".join(
            f"{op.operation}: {op.argument}" + (f" [{','.join(map(str, op.dependencies))}]" if op.dependencies else "")
            for op in question.semantic
        ),
        "annotations": {
            "question": pointers(question.text, question.objects),
            "answer": pointers(question.answer, question.objects),
            "fullAnswer": pointers(full, question.objects),
        },
        "types": {"detailed": question.kind, "semantic": question.about, "structural": question.structural},
        "fullAnswer": full,
    }


def _choices(question: SceneQuestion) -> dict[str, list[str]]:
    """Valid: answers in the question's scope. Plausible: those that make sense, which here are the same words."""
    return {"valid": list(question.choices), "plausible": list(question.choices)}


def scene_graph(scene: Scene) -> dict[str, Any]:
    """The scene as GQA's scene graph; relations go by the things' centres."""
    objects = {}
    for thing in scene.things:
        (x, y), relations = thing.center, []
        for other in scene.things:
            if other is not thing:
                (u, v), name = other.center, object_id(scene, other)
                sides = (("left", x < u), ("right", x > u), ("above", y < v), ("below", y > v))
                relations += [{"name": PREDICATES[side], "object": name} for side, holds in sides if holds]
        attributes = [thing.color, thing.pattern, thing.size, *([thing.digit] if thing.digit else [])]
        objects[object_id(scene, thing)] = {
            "name": thing.shape,
            "x": thing.x,
            "y": thing.y,
            "w": thing.w,
            "h": thing.h,
            "attributes": attributes,
            "relations": relations,
        }
    return {"width": scene.width, "height": scene.height, "objects": objects}


def write_nlvr2(out: str | Path, seed: int, pairs: int, domain: str = DOMAIN, *, progress: Progress | None = None) -> None:
    """Write ``pairs`` pairs of images a split (rounded up to whole sets of four), in NLVR2's layout.

    {train|dev|test1|test2}.json as JSON lines, balanced/ and unbalanced/ subsets of dev and the tests, images below
    images/{split} (train: in their directory). A pair is in the balanced subset where all its sentences are: here, the
    sets of even number.

    Raises:
        StorageError: the folder cannot be written.
    """
    out, sets = Path(out), -(-pairs // 4)
    for number, split in enumerate(NLVR2_SPLITS):
        stream = derive(seed, "export", "nlvr2", split)
        with ExitStack() as files:
            full = files.enter_context(atomic_write(out / f"{split}.json"))
            subsets: list[BinaryIO] = []
            if split != "train":
                for part in ("balanced", "unbalanced"):
                    subsets.append(files.enter_context(atomic_write(out / part / f"{part}_{split}.json")))
            for index in range(sets):
                directory = index % NLVR2_DIRECTORIES
                folder = out / "images" / split / (str(directory) if split == "train" else "")
                drawn: set[str] = set()
                for statement in make_set(stream, index, domain):
                    identifier = f"{split}-{statement.id}"
                    pair = identifier.rpartition("-")[0]
                    record = {
                        "validation": [str(statement.truth)],
                        "identifier": identifier,
                        "sentence": statement.text,
                        "left_url": f"https://example.org/{pair}-img0.png",
                        "writer": "0",
                        "label": str(statement.truth),
                        "synset": statement.kind,
                        "right_url": f"https://example.org/{pair}-img1.png",
                        "query": f"{statement.kind}{index}",
                        **({"directory": directory} if split == "train" else {}),
                    }
                    line = json.dumps(record).encode() + b"\n"
                    for file in (full, *subsets[index % 2 : index % 2 + 1]):
                        file.write(line)
                    if pair not in drawn:
                        drawn.add(pair)
                        for side, scene in enumerate((statement.left, statement.right)):
                            write_bytes(folder / f"{pair}-img{side}.png", _encoded(scene, "PNG"))
                if progress is not None:
                    progress(number * sets + index + 1, sets * len(NLVR2_SPLITS))


class JsonMemberWriter:
    """A JSON object written member by member to a file that appears when it is whole."""

    def __init__(self, path: Path):
        self._stack, self._path, self._empty = ExitStack(), path, True

    def __enter__(self) -> JsonMemberWriter:
        self._file = self._stack.enter_context(atomic_write(self._path))
        self._file.write(b"{")
        return self

    def add(self, key: str, value: Any) -> None:
        """Write one member."""
        comma = b"\n" if self._empty else b",\n"
        self._file.write(comma + json.dumps(key).encode() + b": " + json.dumps(value).encode())
        self._empty = False

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._file.write(b"\n}\n")
        self._stack.__exit__(*error)


def _add(members: JsonMemberWriter | None, key: str, value: Any) -> None:
    if members is not None:
        members.add(key, value)


def _encoded(scene: Scene, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(render(scene).transpose(1, 2, 0))).save(buffer, form, **options)
    return buffer.getvalue()
