"""What a run leaves behind: a trace a program, a step record a call. The one record type of the project."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from tutelage.errors import InputError
from tutelage.fields import check_field
from tutelage.programs.serialization import FindImage, ImageRef, decode, encode, input_hash
from tutelage.programs.types import ProgramFailure, Value
from tutelage.programs.values import Image


class RecordOrigin(NamedTuple):
    """Where records come from: the sample's id, task and stage, and the program that asked."""

    id: str
    task: str = ""
    stage: str = ""
    framework: str = ""
    program_hash: str = ""


@dataclass(slots=True)
class StepRecord:
    """One call of one run: what was asked, what was answered, and later what the teacher says.

    ``step`` is the number of the program's step and ``call_no`` of the call in the run: branches and loops make them
    differ. ``args`` and ``output`` are values as the module saw and gave them; ``output_dist`` maps answers to
    probabilities; ``ms`` is the call's share of its batch's time, 0 where a stored result answered. ``substituted``
    marks an answer that did not come from the module. ``teacher`` is {name, version, hard, dist, conf}; ``weight`` in
    0..1 is the record's weight in a training job.
    """

    origin: RecordOrigin
    step: int
    call_no: int
    module: str
    module_version: str
    args: dict[str, Value]
    output: Value = None
    output_dist: dict[str, float] | None = None
    out_of_vocabulary: bool = False
    ms: float = 0.0
    error: str | None = None
    substituted: bool = False
    teacher: dict[str, Any] | None = None
    filters: dict[str, Any] | None = None
    weight: float = 1.0

    @property
    def id(self) -> str:
        """The sample's id."""
        return self.origin.id

    @property
    def is_fallback(self) -> bool:
        """Whether the step was given nothing to look at and returned an image all the same.

        VisProg's CROP does so: where no box was found it returns the whole image.
        """
        is_image = isinstance(self.output, (Image, ImageRef))
        return is_image and any(isinstance(value, list) and not value for value in self.args.values())

    @property
    def probability(self) -> float | None:
        """The probability in 0..1 that the module gives its own output; None where it reports none.

        For a list of boxes it is that of the best box; for an empty list, that there is none. A fallback has 0: what
        the program was to look at was not found (our choice).
        """
        if self.is_fallback:
            return 0.0
        if self.output_dist is None:
            return None
        if isinstance(self.output, bool):
            return self.output_dist.get("yes" if self.output else "no")
        if isinstance(self.output, str):
            return self.output_dist.get(self.output)
        found = self.output_dist.get("found")
        return 1.0 - found if found is not None and self.output == [] else found

    @property
    def input_hash(self) -> str:
        """16 hex digits naming the question: equal for equal calls, whatever version of the module answered."""
        return input_hash(self.module, self.args)

    @property
    def input(self) -> dict[str, Any]:
        """What the module looked at: {image: key, crop_box: region, and every other argument by name}."""
        seen: dict[str, Any] = {}
        for name, value in self.args.items():
            if isinstance(value, (Image, ImageRef)) and "image" not in seen:
                seen |= {"image": value.root_key, "crop_box": list(value.region)}
            else:
                seen[name] = encode(value)
        return seen

    def to_json(self, *, origin: bool = True, timing: bool = True) -> dict[str, Any]:
        """The record as a line of JSON; without ``timing``, equal runs give equal bytes."""
        head: dict[str, Any] = {}
        if origin:
            head = {name: getattr(self.origin, name) for name in RecordOrigin._fields}
        body = {
            "step": self.step,
            "module": self.module,
            "module_version": self.module_version,
            "call_no": self.call_no,
            "args": {name: encode(value) for name, value in self.args.items()},
            "input": self.input,
            "output": encode(self.output),
            "output_dist": self.output_dist,
            "out_of_vocabulary": self.out_of_vocabulary,
            "error": self.error,
            "substituted": self.substituted,
        }
        if timing:
            body["ms"] = round(self.ms, 4)
        if self.teacher is not None or self.filters is not None or self.weight != 1.0:
            teacher = self.teacher and {**self.teacher, "hard": encode(self.teacher["hard"])}
            body |= {"teacher": teacher, "filters": self.filters, "weight": self.weight}
        return head | body

    @classmethod
    def from_json(cls, data: Mapping[str, Any], find_image: FindImage | None = None) -> StepRecord:
        """The record that :meth:`to_json` wrote; images become references unless ``find_image`` gives them.

        Raises:
            InputError: a field is missing or of another type; the message names it.
        """
        where, remedy = "step record", "collect again"
        optional = {name: data[name] for name in _OPTIONAL if data.get(name) is not None} if isinstance(data, dict) else {}
        given: dict[str, Any] = {}
        for name in optional:
            given[name] = check_field(data, name, _OPTIONAL[name], where=where, remedy=remedy)
        if "teacher" in given:
            given["teacher"] = {**given["teacher"], "hard": decode(given["teacher"].get("hard"), find_image)}
        origin = RecordOrigin(**{name: check_field(data, name, str, where=where, default="") for name in RecordOrigin._fields})
        step, call_no = (check_field(data, name, int, -1, 10**9, where=where, remedy=remedy) for name in ("step", "call_no"))
        module, version = (check_field(data, name, str, where=where, remedy=remedy) for name in ("module", "module_version"))
        args = check_field(data, "args", dict, where=where, remedy=remedy)
        if "output" not in data:
            raise InputError("'output' is missing", where=where, remedy=remedy)
        return cls(
            origin,
            step,
            call_no,
            module,
            version,
            {name: decode(value, find_image) for name, value in args.items()},
            decode(data["output"], find_image),
            **given,
        )


_OPTIONAL: Mapping[str, type] = {
    "output_dist": dict,
    "out_of_vocabulary": bool,
    "ms": float,
    "error": str,
    "substituted": bool,
    "teacher": dict,
    "filters": dict,
    "weight": float,
}


Entry = tuple[int, str, dict[str, Value], int, str, Value, dict[str, float] | None, bool, float, bool]
"""A step as it came: the program's step, the module and its arguments, the call's number in the run, the module's version,
the answer or a ProgramFailure, its distribution, whether words were unknown, milliseconds, whether another than the module
answered."""


@dataclass(slots=True)
class Trace:
    """A program's run: its status (one of ``language.STATUSES``), answer, and every call it made.

    ``fallback`` tells that the program failed and ``answer`` comes from the fallback policy instead. ``log`` holds the
    steps as they came, entry after entry in one flat list: a tuple an entry would be one object more for the garbage
    collector to visit, which a fast run notices. The records are made of them when ``steps`` is read, and put in order if the
    calls of several steps may have been answered in another (``ordered`` False).
    """

    id: str
    status: str = "ok"
    answer: Value = None
    error: str | None = None
    fallback: bool = False
    origin: RecordOrigin = RecordOrigin("")
    log: list[Any] = field(default_factory=list)
    ordered: bool = True
    _steps: list[StepRecord] | None = None

    @property
    def steps(self) -> list[StepRecord]:
        """A record a call, in the order of the calls, or of the program's steps where it asks several together."""
        if self._steps is None:
            parts = iter(self.log)
            entries: Iterable[Entry] = zip(*[parts] * len(get_args(Entry)), strict=True)
            self._steps = [_record(self.origin, entry) for entry in (entries if self.ordered else sorted(entries, key=_order))]
            self.log = []
        return self._steps

    @property
    def confidence(self) -> float | None:
        """The product of the steps' probabilities, in 0..1, as if steps erred independently (our choice).

        It is 0 where a step was a fallback. None where no module reports a probability, or where a module found nothing
        and does not say how sure it is.
        """
        known = [p for record in self.steps if (p := record.probability) is not None]
        if not known or (0.0 not in known and any(record.output == [] and record.probability is None for record in self.steps)):
            return None
        return math.prod(known)

    @property
    def fallback_steps(self) -> list[StepRecord]:
        """The steps that were given nothing to look at: see :attr:`StepRecord.is_fallback`."""
        return [record for record in self.steps if record.is_fallback]

    @property
    def out_of_vocabulary(self) -> int:
        """How many calls used words that their module does not know."""
        return sum(record.out_of_vocabulary for record in self.steps)

    def to_json(self, *, timing: bool = True) -> dict[str, Any]:
        """{id, status, answer, steps, error, fallback, out_of_vocabulary}; without ``timing``, equal runs are equal."""
        return {
            "id": self.id,
            "status": self.status,
            "answer": encode(self.answer),
            "steps": [record.to_json(origin=False, timing=timing) for record in self.steps],
            "error": self.error,
            "fallback": self.fallback,
            "out_of_vocabulary": self.out_of_vocabulary,
        }


def _order(entry: Entry) -> tuple[bool, int, int]:
    """By steps, and what was asked outside the program (a fallback) last."""
    step, number = entry[0], entry[3]
    return step < 0, step, number


def _record(origin: RecordOrigin, entry: Entry) -> StepRecord:
    step, module, args, number, version, value, distribution, unknown, ms, substituted = entry
    error = str(value) if isinstance(value, ProgramFailure) else None
    output = None if error is not None else value
    return StepRecord(
        origin,
        step,
        number,
        module,
        version,
        args,
        output,
        distribution,
        unknown,
        ms,
        error,
        substituted,
    )
