"""Published evaluation protocols: which questions, how many programs each, and when an answer is right.

None of the publications released the ids that it drew: ours are stored with every result, and may be given again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.errors import InputError, did_you_mean
from tutelage.programs.answers import normalize_answer
from tutelage.programs.types import Value

Match = Callable[[Value, str], bool]
"""Whether a program's answer is the annotated one."""


@dataclass(frozen=True)
class Protocol:
    """One protocol: up to ``per_kind`` questions of each detailed type of a split's subset, or ``total`` of all, or
    (neither) all.

    ``runs`` programs a question were written from ``shots`` examples each, and their majority taken. ``fallback``: a
    program that fails is replaced by the whole question put to VQA, which we count. ``source`` says where the facts are
    from; ``unverified`` what is our choice, or known from hearsay.
    """

    name: str
    task: str
    split: str
    subset: str
    match: Match
    source: str
    unverified: tuple[str, ...]
    per_kind: int | None = None
    total: int | None = None
    runs: int = 1
    shots: int | None = None
    fallback: bool = False

    def to_json(self) -> dict[str, Any]:
        """The protocol as JSON holds it, its rule for answers by name."""
        return asdict(self) | {"match": self.match.__name__}


def to_text(answer: Value) -> str:
    """A program's answer as a text: truths as yes and no, the first of a list, nothing as an empty text."""
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    if answer is None:
        return ""
    return ("yes" if answer else "no") if isinstance(answer, bool) else str(answer)


def exact_match(answer: Value, gold: str) -> bool:
    """The official metric of GQA: equal texts."""
    return to_text(answer) == gold


def normalized_match(answer: Value, gold: str) -> bool:
    """Equal as :func:`~tutelage.programs.answers.normalise` spells them: articles, digits and case do not count."""
    return normalize_answer(answer) == normalize_answer(gold)


def vipergpt_match(answer: Value, gold: str) -> bool:
    """ViperGPT's rule: the answer alone is rewritten, then texts must be equal; so "t-shirt" is never right.

    A list counts by its first entry, nothing (and an empty list) as no, a truth as yes or no. Punctuation goes where it
    stands beside a space anywhere in the text, else it becomes a space; full stops before no digit go; number words up to
    ten and "none" become digits, articles go. Restoring apostrophes of contractions is left out: no answer of GQA has one.
    """
    if answer is None or answer == []:
        return gold == "no"
    text = " ".join(to_text(answer).lower().split())
    text = {"true": "yes", "false": "no"}.get(text, text)
    thousands = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        plain = plain.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    return " ".join(_NUMBERS.get(word, word) for word in plain.split() if word not in ("a", "an", "the")) == gold


_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}

_VISPROG = "Gupta and Kembhavi, CVPR 2023 (arXiv 2211.11559)"
_UNPUBLISHED = "how answers were compared is not published; ours: "

VISPROG_GQA = Protocol(
    "visprog-gqa",
    "gqa",
    "testdev",
    "balanced",
    exact_match,
    f"{_VISPROG}, section 4.1 and table 1: up to 20 questions of each of about 100 detailed types; 5 runs of 24 examples, voted",
    (_UNPUBLISHED + "GQA's exact texts",),
    per_kind=20,
    runs=5,
    shots=24,
)
VISPROG_GQA_VAL = Protocol(
    "visprog-gqa-val",
    "gqa",
    "val",
    "balanced",
    exact_match,
    f"{_VISPROG}, section 4.1: up to 5 questions of each detailed type, to choose prompts by",
    (_UNPUBLISHED + "GQA's exact texts",),
    per_kind=5,
)
VISPROG_NLVR2 = Protocol(
    "visprog-nlvr2",
    "nlvr2",
    "test1",
    "full",
    normalized_match,
    f"{_VISPROG}, section 4.2 and table 2: the full public test set; 5 runs of 16 examples, voted",
    (
        "that the public test set is test1: NLVR2's own name for it is test-P, its file test1.json",
        _UNPUBLISHED + "true is yes",
    ),
    runs=5,
    shots=16,
)
VISPROG_NLVR2_DEV = Protocol(
    "visprog-nlvr2-dev",
    "nlvr2",
    "dev",
    "full",
    normalized_match,
    f"{_VISPROG}, section 4.2: 250 examples of dev, to choose prompts by",
    (_UNPUBLISHED + "true is yes",),
    total=250,
)
VIPER_GQA = Protocol(
    "viper-gqa",
    "gqa",
    "testdev",
    "balanced",
    vipergpt_match,
    "Surís, Menon and Vondrick, ICCV 2023 (arXiv 2303.08128), table 2: test-dev. Of the released code: balanced, 1,000 drawn "
    "at random (configs/benchmarks/gqa.yaml), the rule for answers (datasets/gqa.py), VQA where a program fails (main_batch.py)",
    ("that the 48.1 of table 2 was taken on such a sample, with this rule and this fallback: the paper does not say",),
    total=1000,
    fallback=True,
)
PROTOCOLS = (VISPROG_GQA, VISPROG_GQA_VAL, VISPROG_NLVR2, VISPROG_NLVR2_DEV, VIPER_GQA)
"""The first of each task is its default."""


def get_protocol(task: str, name: str | None = None) -> Protocol:
    """The preset ``name`` of a task, or the task's default.

    Raises:
        InputError: the task has none of that name.
    """
    known = {preset.name: preset for preset in PROTOCOLS if preset.task == task}
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise InputError(f"no preset {name!r} of {task}", where="--preset", remedy=did_you_mean(name, list(known)))
    return known[name]
