"""Adapters: how a teacher's skill becomes labels for a module's calls (A_in, A_out of the SDVP specification).

A call outside the teacher's capability gets no label, never "other".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tutelage.distillation.data.object_hash import callable_fingerprint
from tutelage.errors import InputError
from tutelage.modules.detection import Loc
from tutelage.modules.hf.base import HfModule
from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.modules.vqa import Vqa
from tutelage.programs.types import Call
from tutelage.storage import fingerprint


@dataclass(frozen=True)
class ModuleTeacher:
    """A teacher of one module's calls.

    ``supports`` says which calls it can answer; ``answer`` labels a batch of covered calls (None: it
    declines one). ``temperature`` calibrates
    its confidence: shares become ``p^(1/T)``, renormalised. ``label_related_calls``: it also labels the sibling calls it covers.
    """

    name: str
    version: str
    supports: Callable[[Call], bool]
    answer: Callable[[Sequence[Call]], Sequence[CallLabel | None]]
    temperature: float = 1.0
    label_related_calls: bool = False

    def label(self, calls: Sequence[Call]) -> list[CallLabel | None]:
        """A label a call, None where the teacher has nothing to say."""
        positions = [i for i, call in enumerate(calls) if self.supports(call)]
        labels: list[CallLabel | None] = [None] * len(calls)
        for start in range(0, len(positions), 256):
            part = positions[start : start + 256]
            for i, label in zip(part, self.answer([calls[i] for i in part]), strict=True):
                labels[i] = apply_temperature(label, self.temperature) if label is not None else None
        return labels

    def calibrated(self, temperature: float) -> ModuleTeacher:
        """The same teacher with another temperature."""
        return replace(self, temperature=temperature)


def apply_temperature(label: CallLabel, temperature: float) -> CallLabel:
    """``label`` with its probabilities at ``temperature``, and its confidence their largest."""
    if label.probabilities is None or temperature == 1.0:
        return label
    powers = {answer: max(p, 1e-12) ** (1 / temperature) for answer, p in label.probabilities.items()}
    total = sum(powers.values())
    dist = {answer: p / total for answer, p in powers.items()}
    return replace(label, probabilities=dist, confidence=max(dist.values()))


def teacher_from_module(specialist: VisualModule) -> ModuleTeacher:
    """A specialist with the module's own call: it covers what its vocabulary, or its classes, can say; a transformers model
    covers every call.

    Raises:
        InputError: a class of module this adapter does not know.
    """
    if isinstance(specialist, Vqa):
        covers = partial(_supports_question, tuple(kind for kind, _ in specialist.config.vocabulary.answers))
        return ModuleTeacher(f"{specialist.name} specialist", specialist.version, covers, partial(_label_with_module, specialist))
    if isinstance(specialist, Loc):
        return ModuleTeacher(
            "LOC specialist",
            specialist.version,
            partial(_supports_class, specialist),
            partial(_label_boxes, specialist),
            label_related_calls=True,
        )
    if isinstance(specialist, HfModule):
        title = f"{specialist.name} {specialist.config.source}"
        return ModuleTeacher(title, specialist.version, specialist.capabilities.supports, partial(_label_with_module, specialist))
    raise InputError(f"no ready adapter for {type(specialist).__name__}", remedy="give a StepTeacher with covers and answer")


def verify_teacher_from_vqa(specialist: Vqa) -> ModuleTeacher:
    """A VQA specialist as a teacher of VERIFY: "is it red?" is how probable "red" is among its answers."""
    kinds = {answer: kind for kind, group in specialist.config.vocabulary.answers for answer in group}
    answer = partial(_label_verify_calls, specialist, kinds)
    return ModuleTeacher("VQA specialist as judge", specialist.version, partial(_supports_property, kinds), answer)


def from_callable(
    function: Callable[[list[Call]], Sequence[Any]], name: str | None = None, version: str | None = None
) -> ModuleTeacher:
    """Any callable as a teacher: it takes calls and gives, for each, an answer, a dict of probabilities, or None.

    Args:
        function: the callable.
        name: what reports call it; None: its own name.
        version: names its answers; None: its code and all that it holds do, so that a changed one is another teacher.

    Raises:
        InputError: no ``version``, and the callable holds what cannot be looked into.
    """
    title = name or str(getattr(function, "__name__", "teacher"))
    code = callable_fingerprint(function, f"teacher {title}", version)
    return ModuleTeacher(title, fingerprint(title, code), _supports_all, partial(_labels_of, function))


def as_label(answer: Any) -> CallLabel:
    """An answer, or a dict of probabilities, as a label."""
    if isinstance(answer, CallLabel):
        return answer
    if isinstance(answer, Mapping):
        best = max(answer, key=answer.__getitem__)
        return CallLabel(best, dict(answer), answer[best])
    return CallLabel(answer)


# What teachers do, as functions with a name and their specialist as first argument: so they can be sent to worker processes.


def _supports_all(call: Call) -> bool:
    return True


def _labels_of(function: Callable[[list[Call]], Sequence[Any]], calls: Sequence[Call]) -> list[CallLabel | None]:
    return [None if found is None else as_label(found) for found in function(list(calls))]


def _supports_question(kinds: Sequence[str], call: Call) -> bool:
    words = str(call.args["question"]).lower().split()
    return any(kind in words for kind in kinds) and words[0] not in {"is", "are", "does", "do"}


def _label_with_module(specialist: VisualModule, calls: Sequence[Call]) -> list[CallLabel]:
    outputs = specialist.run(calls)
    dists = outputs.distributions or [None] * len(calls)
    return [_module_label(value, dist) for value, dist in zip(outputs.values, dists, strict=True)]


def _module_label(value: Any, dist: Mapping[str, float] | None) -> CallLabel:
    """A module's output as a label. Boxes come with the probability of the best one, which is no distribution over answers;
    no boxes, with that of the best one that was rejected."""
    if isinstance(value, list):
        found = (dist or {}).get("found", float(bool(value)))
        return CallLabel(value, None, found if value else 1.0 - found)
    return CallLabel(value, dist, max(dist.values()) if dist else 1.0)


def _supports_property(kinds: Mapping[str, str], call: Call) -> bool:
    return call.args.get("property") in kinds


def _label_verify_calls(specialist: Vqa, kinds: Mapping[str, str], calls: Sequence[Call]) -> list[CallLabel]:
    vqa_calls = [
        Call("VQA", {"image": c.args["image"], "question": f"What {kinds[c.args['property']]} is the {c.args['object']}?"})
        for c in calls
    ]
    shares = [
        (dist or {}).get(call.args["property"], 0.0)
        for call, dist in zip(calls, specialist.run(vqa_calls).distributions or [], strict=True)
    ]
    return [CallLabel(p >= 0.5, {"yes": p, "no": 1 - p}, max(p, 1 - p)) for p in shares]


def _supports_class(specialist: Loc, call: Call) -> bool:
    return len(specialist.classes_of(call.args["object"])[0]) == 1


def _label_boxes(specialist: Loc, calls: Sequence[Call]) -> list[CallLabel]:
    """Boxes above the specialist's threshold; it is as sure as of its least certain decision about a peak."""
    threshold = specialist.config.threshold
    return [
        CallLabel(
            [b for b in boxes if b.score >= threshold],
            None,
            min((_decision_confidence(b.score, threshold) for b in boxes), default=1.0),
        )
        for boxes in specialist.scored_boxes(calls)
    ]


def _decision_confidence(score: float, threshold: float) -> float:
    """The probability that the decision at ``threshold`` about a peak of this score is right, 0.5 at the threshold."""
    if score >= threshold:
        return 0.5 + 0.5 * (score - threshold) / max(1e-6, 1 - threshold)
    return 0.5 + 0.5 * (threshold - score) / max(1e-6, threshold)
