"""easy-VQA: a published benchmark of one coloured shape an image, read from its own package.

The package ``easy-vqa`` 1.0 (MIT) carries 4000 + 1000 images of 64x64 and 38,575 + 9,673 questions with 13 answers. Its
files are read where it is installed; its code is never imported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from tutelage.errors import InputError, MissingExtra
from tutelage.seeds import numpy_rng
from tutelage.storage import read_json

COLORS = ("black", "gray", "teal", "brown", "red", "green", "blue", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = (*COLORS, *SHAPES, "yes", "no")
QUESTION_TYPES = ("color", "shape", "yes/no")
SIDE = 64

Split = Literal["train", "test"]
QuestionType = Literal["color", "shape", "yes/no"]


@dataclass(frozen=True, slots=True)
class EasyVqaSample:
    """One question about one image."""

    id: str
    image_id: int
    file: Path = field(repr=False, compare=False)
    question: str
    answer: str
    qtype: QuestionType

    @property
    def image(self) -> np.ndarray:
        """The pixels, uint8 [3, 64, 64], read-only; decoded now, unless they were a moment ago.

        Raises:
            InputError: the file is not such an image.
        """
        return _read_image(self.file)


def question_type(answer: str) -> QuestionType:
    """The type of a question with this answer.

    Raises:
        InputError: not one of the 13 answers.
    """
    if answer in COLORS:
        return "color"
    if answer in SHAPES:
        return "shape"
    if answer in ("yes", "no"):
        return "yes/no"
    raise InputError(f"not an easy-VQA answer: {answer!r}", remedy=f"the answers are {', '.join(ANSWERS)}")


def data_folder() -> Path:
    """The installed benchmark's data folder.

    Raises:
        MissingExtra: the package ``easy-vqa`` is not installed.
    """
    try:
        return Path(str(distribution("easy-vqa").locate_file("easy_vqa/data")))
    except PackageNotFoundError:
        raise MissingExtra("easy-vqa", "data") from None


def load(split: Split, folder: str | Path | None = None) -> list[EasyVqaSample]:
    """Every question of ``split`` in published order; ids are ``easy_vqa/train/0`` and on.

    ``folder`` is the benchmark's data folder, by default that of the installed package. An image is decoded
    when it is first looked at.

    Raises:
        MissingExtra: no ``folder`` is given and the package is absent.
        InputError: an unknown split, or questions that are not what the benchmark publishes.
    """
    if split not in ("train", "test"):
        raise InputError(f"easy-VQA has no split {split!r}", where="split", remedy="use train or test")
    return list(_read(split, (data_folder() if folder is None else Path(folder)) / split))


@lru_cache(maxsize=1)
def _read(split: str, root: Path) -> tuple[EasyVqaSample, ...]:
    """All samples of a split; the last split read is kept, for it cannot change."""
    file = root / "questions.json"
    rows = read_json(file)
    if not isinstance(rows, list):
        raise InputError("not a list of questions", where=file, remedy="install the package easy-vqa==1.0 again")
    pictures: dict[int, Path] = {}
    return tuple(_sample(split, number, row, pictures, file) for number, row in enumerate(rows))


def _sample(split: str, number: int, row: Any, pictures: dict[int, Path], file: Path) -> EasyVqaSample:
    match row:
        case [str(question), str(answer), int(image_id)] if answer in ANSWERS:
            picture = pictures.setdefault(image_id, file.parent / "images" / f"{image_id}.png")
            name = f"easy_vqa/{split}/{number}"
            return EasyVqaSample(name, image_id, picture, question, answer, question_type(answer))
    raise InputError(
        f"not [question, answer, image id]: {row!r}"[:200],
        where=f"{file}: question {number}",
        remedy="install the package easy-vqa==1.0 again",
    )


@lru_cache(maxsize=64)
def _read_image(path: Path) -> np.ndarray:
    try:
        with PIL.Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise InputError(f"not an image: {error}", where=path, remedy="install the package easy-vqa==1.0 again") from error
    if pixels.shape != (SIDE, SIDE, 3):
        raise InputError(f"an image is {SIDE}x{SIDE}, this is {pixels.shape[1]}x{pixels.shape[0]}", where=path)
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    image.setflags(write=False)
    return image


def subsample(samples: Sequence[EasyVqaSample], count: int, seed: int) -> list[EasyVqaSample]:
    """``count`` samples with the question types in their original shares, from as few images as that takes.

    Images are taken in a seeded order, so a smaller ``count`` of the same seed is contained in a larger one up to
    rounding of the shares. The original order is kept.

    Raises:
        InputError: ``count`` is negative or more than there are.
    """
    if not 0 <= count <= len(samples):
        raise InputError(f"cannot take {count} of {len(samples)} samples", where="count")
    rank = _image_ranks(samples, seed, "subsample")
    by_type: dict[str, list[int]] = {name: [] for name in QUESTION_TYPES}
    for index in sorted(range(len(samples)), key=lambda index: rank[samples[index].image_id]):
        by_type[samples[index].qtype].append(index)
    exact = {name: count * len(of_type) / max(1, len(samples)) for name, of_type in by_type.items()}
    quota = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: quota[name] - exact[name])[: count - sum(quota.values())]:
        quota[name] += 1  # largest remainders
    chosen = sorted(index for name, of_type in by_type.items() for index in of_type[: quota[name]])
    return [samples[index] for index in chosen]


def spread_over_images(samples: Sequence[EasyVqaSample], count: int, seed: int) -> list[EasyVqaSample]:
    """``count`` samples from as many images as there are: one of each image, drawn by ``seed``, then a second, and on.

    What is learnt from needs many images more than many questions. The original order is kept.

    Raises:
        InputError: ``count`` is negative or more than there are.
    """
    if not 0 <= count <= len(samples):
        raise InputError(f"cannot take {count} of {len(samples)} samples", where="count")
    turn: Counter[int] = Counter()
    turns: dict[int, int] = {}
    for index in numpy_rng(seed, "easy_vqa", "spread").permutation(len(samples)).tolist():
        turns[index] = turn[samples[index].image_id]
        turn[samples[index].image_id] += 1
    chosen = sorted(turns, key=turns.__getitem__)[:count]  # stable: within a turn, in the order they were drawn
    return [samples[index] for index in sorted(chosen)]


def split_by_image(samples: Sequence[EasyVqaSample], share: float, seed: int) -> tuple[list[EasyVqaSample], list[EasyVqaSample]]:
    """Two parts that share no image: about ``share`` of the images with all their questions, and the rest.

    Raises:
        InputError: ``share`` is not within 0..1.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share lies in 0..1, this is {share}", where="share")
    rank = _image_ranks(samples, seed, "split")
    limit = round(share * len(rank))
    first = [sample for sample in samples if rank[sample.image_id] < limit]
    return first, [sample for sample in samples if rank[sample.image_id] >= limit]


def _image_ranks(samples: Iterable[EasyVqaSample], seed: int, purpose: str) -> dict[int, int]:
    images = sorted({sample.image_id for sample in samples})
    order = numpy_rng(seed, "easy_vqa", purpose).permutation(len(images))
    return {images[index]: rank for rank, index in enumerate(order.tolist())}


@dataclass(frozen=True)
class QuestionPrior:
    """Answers a question by its words alone: the commonest answer to the same question text, the image unseen.

    Fitted on the train split it scores 67.0 % on the test split; fitted on the test split itself, 67.8 %: no answerer
    that does not look at the image can do better than that.
    """

    answers: dict[str, str]
    default: str

    @classmethod
    def fit(cls, samples: Iterable[EasyVqaSample]) -> QuestionPrior:
        """The prior of ``samples``; of equally common answers the first in the alphabet is kept.

        Raises:
            InputError: there are no samples.
        """
        seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            seen[sample.question][sample.answer] += 1
        if not seen:
            raise InputError("a prior needs at least one sample", where="samples")
        total = sum(seen.values(), Counter())
        return cls({question: _most_common(counts) for question, counts in seen.items()}, _most_common(total))

    def answer(self, question: str) -> str:
        """The commonest answer to ``question``, or over all questions where this one was never seen."""
        return self.answers.get(question, self.default)


def _most_common(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def accuracy(samples: Sequence[EasyVqaSample], answers: Sequence[str]) -> dict[str, float]:
    """Exact-match accuracy in 0..1 over ``all`` samples and by question type (types that do not occur are left out).

    Raises:
        InputError: no samples, or not one answer a sample.
    """
    if not samples or len(samples) != len(answers):
        raise InputError(f"{len(answers)} answers to {len(samples)} samples", where="answers")
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for sample, answer in zip(samples, answers, strict=True):
        right["all"].append(answer == sample.answer)
        right[sample.qtype].append(answer == sample.answer)
    return {name: float(np.mean(right[name])) for name in ("all", *QUESTION_TYPES) if name in right}
