"""A trained tracer: from a log to predictions, with its AUC on students that were held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.datasets.confidence_intervals import Interval
from tutelage.datasets.roc_auc import roc_auc, roc_auc_interval
from tutelage.distillation.export import load_weights, save_weights
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.settings import make_settings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.fields import check_field, check_items, check_range
from tutelage.reading import read_json
from tutelage.seeds import numpy_rng
from tutelage.storage import atomic_folder, write_json
from tutelage.systems._toy import build_with_seed
from tutelage.systems.cakt.answers import PIECE, Answers, answer_data, concept_id, pieces, read_answers
from tutelage.systems.cakt.clips import encode
from tutelage.systems.cakt.network import CAKT

HEAD, WEIGHTS = "tracer.json", "weights.safetensors"
SIDE, DECAY_START = 5, 0.1
SETTINGS: Mapping[str, Any] = {"epochs": 10, "batch_size": 10, "lr": 2e-3, "schedule": "linear"}


@dataclass(frozen=True)
class Tracer:
    """A network with the names of its concepts.

    Attributes:
        network: in eval mode.
        concepts: names; concept i of the network is ``concepts[i - 1]``.
        options: what the network was built with.
        report: figures of :func:`fit`.
    """

    network: CAKT
    concepts: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, history: Sequence[tuple[str, int]], next_concept: str) -> float:
        """The chance, in 0..1, that a student answers a question on ``next_concept`` right.

        Args:
            history: (concept, 1 for right or 0 for wrong) of each answer so far; the last 200 count.
            next_concept: its name.

        Raises:
            InputError: no history, an unknown concept, or an answer that is neither 0 nor 1.
        """
        return float(self.chances(history, [next_concept])[0])

    @torch.no_grad()
    def chances(self, history: Sequence[tuple[str, int]], concepts: Sequence[str] | None = None) -> np.ndarray:
        """:meth:`predict` for several concepts (None: all), each as if its question came next: [n]."""
        if not history:
            raise InputError("no history", where="history", remedy="at least one answer: [(concept, 0 or 1)]")
        places = {name: i + 1 for i, name in enumerate(self.concepts)}
        recent = list(history)[1 - PIECE :]
        for number, (_, right) in enumerate(recent):
            check_range(f"history[{number}]", int(right) if isinstance(right, (bool, np.integer)) else right, 0, 1, whole=True)
        ids = torch.tensor([concept_id(places, name) for name, _ in recent])
        interactions = encode(ids, torch.tensor([int(right) for _, right in recent]), len(places))
        wanted = [concept_id(places, name) for name in (self.concepts if concepts is None else concepts)]
        found = []
        for part in torch.tensor(wanted).split(64):
            following = torch.cat([ids[1:].expand(len(part), -1), part[:, None]], 1)
            inputs = {"interactions": interactions.expand(len(part), -1), "next_concept": following}
            found.append(self.network(inputs)[:, -1].sigmoid())
        return torch.cat(found).numpy()

    def score(self, students: Sequence[Answers], seed: int = 0) -> Interval:
        """The AUC over all steps of all ``students``, with its 95 % interval over students; ``nan`` where it is not defined.

        Raises:
            InputError: no student has two answers, or a concept is unknown.
        """
        scores, labels, names = step_scores(self.network, pieces(students), self.concepts)
        return roc_auc_interval(scores, labels, names, seed=seed)

    def save(self, folder: str | Path) -> Path:
        """Write ``tracer.json`` and ``weights.safetensors`` into ``folder``; it holds no student."""
        head = {"format": "tutelage-tracer", "version": 1, "concepts": list(self.concepts), "options": dict(self.options)}
        with atomic_folder(folder, HEAD) as place:
            save_weights(self.network, place / WEIGHTS)
            write_json(place / HEAD, head | {"report": dict(self.report)}, sealed=True)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Tracer:
        """What :meth:`save` wrote.

        Raises:
            InputError: no such folder, or a file that is damaged or of something else.
        """
        file = Path(folder) / HEAD
        head = read_json(file, sealed=True, remedy="`tutelage cakt fit` writes one")
        check_field(head, "format", str, where=file, choices=["tutelage-tracer"])
        check_field(head, "version", int, 1, 1, where=file)
        concepts = check_items(head, "concepts", str, 1, where=file)
        options, report = (check_field(head, name, dict, where=file) for name in ("options", "report"))
        try:
            network = CAKT(len(concepts), **options)
        except TypeError as error:
            raise InputError(f"options of another network: {error}", where=file, remedy="fit it again") from error
        return cls(load_weights(network, Path(folder) / WEIGHTS), concepts, options, report)  # type: ignore[arg-type]


@torch.no_grad()
def step_scores(network: nn.Module, rows: Sequence[Answers], concepts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(logit, answer, student) of every step of ``rows``, in eval mode; the network's mode is put back."""
    data, was_training = answer_data(rows, concepts), network.training
    network.eval()
    parts = [network(data.batch(part, None).inputs) for part in torch.arange(len(data)).split(64)]
    network.train(was_training)
    real = data.labels >= 0
    names = [one.student for one in rows if len(one) > 1 for _ in range(len(one) - 1)]
    return torch.cat(parts)[real].double().numpy(), data.labels[real].numpy(), names


def fit(
    answers: str | Path | Sequence[Answers],
    *,
    columns: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    folder: str | Path | None = None,
    **settings: Any,
) -> Tracer:
    """Train a :class:`CAKT` on the answers of students, and report the AUC on others.

    Whole students are drawn for training, validation and test. The weights of the epoch with the best AUC on the validation
    students are kept; the AUC on the test students is measured once, of these.

    Args:
        answers: a log as :func:`~tutelage.systems.cakt.answers.read_answers` reads it, or what it gives.
        columns: arguments of that reader, such as ``{"concept": "skill_name", "encoding": "latin-1"}``.
        options: of :class:`CAKT`; default: ``{"side": 5, "decay_start": 0.1}``.
        validation, test: shares of the students; at least one student each.
        seed: of everything.
        folder: where checkpoints are kept, so that the same call goes on where it was stopped.
        settings: of training (``TrainingSettings``): ``epochs=20, lr=1e-3``.

    Returns:
        The tracer; its ``report`` holds ``auc`` with ``low`` and ``high`` (None where the test students have answers of one
        kind alone), ``validation_auc``, and how many students and answers each part has.

    Raises:
        InputError: a log that cannot be read, or fewer than three students with two answers.

    Examples:
        >>> tracer = fit("answers.csv")  # doctest: +SKIP
        >>> tracer.predict([("fractions", 0), ("fractions", 1)], "fractions")  # doctest: +SKIP
        0.71
    """
    for name, share in (("validation", validation), ("test", test)):
        check_range(name, share, 0.0, 0.5)
    if isinstance(answers, (str, Path)):
        students = read_answers(answers, **dict(columns or {}))
    elif columns:
        raise InputError("columns of no file", where="columns", remedy="leave them out: the answers are read already")
    else:
        students = list(answers)
    where = answers if isinstance(answers, (str, Path)) else "answers"
    able = [one for one in students if len(one) > 1]
    if len(able) < 3:
        found = f"{len(able)} student{'s' * (len(able) != 1)} with two answers or more"
        raise InputError(found, where=where, remedy="give at least 3: one each to train on, to choose by and to test on")
    concepts = sorted({name for one in students for name in one.concepts})
    order = numpy_rng(seed, "students").permutation(len(able))
    counts = [max(1, round(share * len(able))) for share in (test, validation)]
    tests, chosen_by, training = (
        [able[i] for i in rows] for rows in (order[: counts[0]], order[counts[0] : sum(counts)], order[sum(counts) :])
    )
    if not training:
        raise InputError("no student is left to train on", where="validation, test", remedy="smaller shares, or more students")

    def validate(network: nn.Module) -> dict[str, float]:
        scores, labels, _ = step_scores(network, pieces(chosen_by), concepts)
        return {"AUC": roc_auc(scores, labels)}

    built = {"side": SIDE, "decay_start": DECAY_START} | dict(options or {})
    try:
        network = build_with_seed(lambda: CAKT(len(concepts), **built), seed, "network")
    except TypeError as error:
        raise InputError(f"options of another network: {error}", where="options", remedy="see CAKT") from error
    chosen = make_settings(None, {**SETTINGS, **settings, "seed": seed, "metric": "AUC", "lower_is_better": False})
    job = TrainingJob(
        network, None, Supervised(), answer_data(pieces(training), concepts), chosen, "cakt", task="multi-label",
        validation=validate,
    )  # fmt: skip
    result = train(job, None if folder is None else Path(folder))
    tracer = Tracer(result.student, concepts, built)  # type: ignore[arg-type]
    area = tracer.score(tests, seed)
    best = (result.selection or {}).get("best_value")
    parts = {"training": training, "validation": chosen_by, "test": tests}
    report = {
        "auc": _known(area.mean),
        "low": _known(area.low),
        "high": _known(area.high),
        "validation_auc": best,
        "students": {name: len(part) for name, part in parts.items()},
        "answers": {name: sum(map(len, part)) for name, part in parts.items()},
        "concepts": len(concepts),
        "seed": seed,
    }
    return Tracer(tracer.network, concepts, built, report)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
