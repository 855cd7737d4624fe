"""Made-up languages, and writers of training data in them whose quality is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tutelage.datasets.rank_correlation import spearman
from tutelage.seeds import numpy_rng
from tutelage.systems.polyglot_teachers.rows import Row, TestItem

SUBJECTS, OBJECTS, ENDINGS = 16, 16, 4
ORDERS = ((0, 1, 2), (1, 0, 2), (2, 1, 0))
"""Word orders of the response: subject object ending, object subject ending, ending object subject."""


@dataclass(frozen=True)
class ToyLanguage:
    """A language of 36 words of its own: a prompt is "subject object", the response three words in its order.

    The ending is ``(f[subject] + h[object]) mod 4`` by tables of the language: what a student has to learn.
    """

    name: str
    order: tuple[int, int, int]
    of_subject: tuple[int, ...]
    of_object: tuple[int, ...]

    @property
    def words(self) -> list[str]:
        """All words."""
        kinds = (("s", SUBJECTS), ("o", OBJECTS), ("e", ENDINGS))
        return [self.word(kind, number) for kind, count in kinds for number in range(count)]

    def word(self, kind: str, number: int) -> str:
        """Subject (s), object (o) or ending (e) of this number."""
        return f"{self.name}{kind}{number}"

    def prompt(self, place: int) -> str:
        """The prompt of cell ``place`` in 0..255."""
        subject, thing = divmod(place, OBJECTS)
        return f"{self.word('s', subject)} {self.word('o', thing)}"

    def response(self, place: int, ending: int | None = None, order: tuple[int, int, int] | None = None) -> str:
        """The response of cell ``place``, with another ending or word order where given."""
        subject, thing = divmod(place, OBJECTS)
        right = (self.of_subject[subject] + self.of_object[thing]) % ENDINGS
        words = (self.word("s", subject), self.word("o", thing), self.word("e", right if ending is None else ending))
        return " ".join(words[i] for i in (order or self.order))

    def judge(self, row: Row) -> float:
        """A rule-based judge: 5 for the right response, 3 for a right ending in another order, else 1."""
        prompt = row.prompt.split()
        place = OBJECTS * int(prompt[0].rpartition("s")[2]) + int(prompt[1].rpartition("o")[2])
        right = self.response(place)
        return 5.0 if row.response == right else 3.0 if sorted(row.response.split()) == sorted(right.split()) else 1.0


def toy_languages(seed: int, count: int = 3) -> list[ToyLanguage]:
    """``count`` languages a, b, c … with tables drawn from ``seed``, their word orders in turn."""
    rng = numpy_rng(seed, "toy languages")
    return [
        ToyLanguage(
            "abcdefghij"[number],
            ORDERS[number % len(ORDERS)],
            tuple(rng.integers(ENDINGS, size=SUBJECTS).tolist()),
            tuple(rng.integers(ENDINGS, size=OBJECTS).tolist()),
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Writer:
    """A writer of training data of ``quality`` 0..5. Its ``size``, in billions of parameters, says nothing of it."""

    name: str
    quality: int
    size: float

    def rows(self, language: ToyLanguage, number: int, count: int, seed: int) -> list[Row]:
        """``count`` rows in the language of this ``number``.

        The ending is right in a share ``min(1, .35 + .13 q)``, the order broken in ``.25 (1 - q/5)``, and the prompts come
        from a share ``.15 + .17 ((q + 2 number) mod 6)`` of all cells, so that no writer is the best in every language.
        """
        rng, cells = numpy_rng(seed, "writer", self.name, language.name), SUBJECTS * OBJECTS
        share = min(1.0, 0.15 + 0.17 * ((self.quality + 2 * number) % 6))
        used = rng.permutation(cells)[: max(1, round(share * cells))]
        found = []
        for place in rng.choice(used, count).tolist():
            clean = language.response(place)
            right = rng.random() < min(1.0, 0.35 + 0.13 * self.quality)
            broken = rng.random() < 0.25 * (1 - self.quality / 5)
            ending = None if right else _other_ending(clean, language, int(rng.integers(1, ENDINGS)))
            order = language.order[1:] + language.order[:1] if broken else language.order
            found.append(Row(language.prompt(place), language.response(place, ending, order), "respond", language.name, self.name))
        return found


def _other_ending(response: str, language: ToyLanguage, shift: int) -> int:
    ending = next(word for word in response.split() if word.startswith(f"{language.name}e"))
    return (int(ending.rpartition("e")[2]) + shift) % ENDINGS


SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def admissible_qualities(most: float = 0.15) -> list[tuple[int, ...]]:
    """Every way to give the writers of :data:`SIZES` the qualities 0..5 with ``|Spearman(size, quality)| <= most``."""
    return [order for order in itertools.permutations(range(len(SIZES))) if abs(spearman(order, SIZES)) <= most]


def toy_writers(seed: int) -> list[Writer]:
    """A writer of each size; their qualities are drawn among :func:`admissible_qualities`."""
    orders = admissible_qualities()
    chosen = orders[int(numpy_rng(seed, "writers").integers(len(orders)))]
    return [Writer(f"writer-{size:g}b", quality, size) for quality, size in zip(chosen, SIZES, strict=True)]


def largest_chances() -> dict[int, float]:
    """The chance of each quality to be that of the largest writer, over all draws of :func:`toy_writers`."""
    orders = admissible_qualities()
    return {quality: sum(order[-1] == quality for order in orders) / len(orders) for quality in range(len(SIZES))}


def clean_rows(language: ToyLanguage, count: int, seed: int, name: str = "clean") -> list[Row]:
    """Faultless rows over all cells."""
    places = numpy_rng(seed, name, language.name).integers(SUBJECTS * OBJECTS, size=count).tolist()
    return [Row(language.prompt(p), language.response(p), "respond", language.name, name) for p in places]


def toy_items(language: ToyLanguage, seed: int, validation: int = 100) -> tuple[list[TestItem], list[TestItem]]:
    """(validation items, test items): disjoint, all 256 cells together."""
    order = numpy_rng(seed, "items", language.name).permutation(SUBJECTS * OBJECTS).tolist()
    items = [TestItem(language.prompt(p), language.response(p), language.name) for p in order]
    return items[:validation], items[validation:]
