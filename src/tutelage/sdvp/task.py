"""A task that modules learn, and what became of each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.errors import InputError
from tutelage.programs.types import Module
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question
from tutelage.sdvp.tally import ProgramTally
from tutelage.sdvp.teacher_check import Probe, TeacherCheck
from tutelage.sdvp.teachers import ModuleTeacher


@dataclass(frozen=True)
class SdvpTask:
    """One task to learn.

    Attributes:
        name: Names its folder and its random streams.
        questions: They need no answers; options that learn from final answers use those that are there.
        teachers: By module.
        probe: Labelled calls by module: they check and calibrate the teachers.
        replay: Questions of earlier tasks, without answers, whose calls keep old knowledge.
        guarded: Labelled questions whose accuracy may not fall.
        probe_questions: Answered questions on which a teacher without probe calls is checked, in the module's place.
        steps_factor: Its modules are trained this many times as long as the options say: a new skill takes longer than a known
            one in a new look.
    """

    name: str
    questions: Sequence[Question]
    teachers: Mapping[str, ModuleTeacher]
    probe: Mapping[str, Probe] = field(default_factory=dict)
    replay: Sequence[Question] = ()
    guarded: Sequence[Question] = ()
    probe_questions: Sequence[Question] = ()
    steps_factor: float = 1.0

    def own_options(self, options: SdvpOptions) -> SdvpOptions:
        """``options``, with the language of the questions where they name none, and ``steps_factor`` times the steps."""
        settings = options.settings
        if settings.epochs is not None:
            longer = replace(settings, epochs=self.steps_factor * settings.epochs)
        else:
            longer = replace(settings, steps=max(1, round(self.steps_factor * settings.steps)))
        return replace(options.for_questions(self.questions), settings=longer)

    def module_names(self, options: SdvpOptions) -> list[str]:
        """The modules to teach, in the order of ``options``."""
        chosen = [name for name in self.teachers if not options.modules or name in options.modules]
        return sorted(chosen, key=lambda name: (options.order.index(name) if name in options.order else 99, name))

    def answered_questions(self) -> list[Question]:
        """The questions whose answer is known.

        Raises:
            InputError: there are none.
        """
        known = [question for question in self.questions if question.answer is not None]
        if not known:
            remedy = "give answers, or leave the option off"
            raise InputError("no question has an answer", where=f"stage {self.name}", remedy=remedy)
        return known


@dataclass(frozen=True)
class ModuleReport:
    """What became of one module in one task.

    Attributes:
        stage: The task's name.
        module: The module's name.
        teacher: The teacher's name.
        verdict: The check of the teacher.
        records: Labelled calls.
        kept: Labelled calls that pass the filters.
        replayed: Rows of replayed inputs.
        share: Of the new weights, in 0..1, after interpolation with the old ones.
        guard_before: Accuracy (0..1) on the guarded questions before training.
        guard_after: The same after training and interpolation.
        loss: The terms of the last logged step.
        seconds: Of training.
    """

    stage: str
    module: str
    teacher: str
    verdict: TeacherCheck
    records: int
    kept: int
    replayed: int = 0
    share: float = 0.0
    guard_before: float | None = None
    guard_after: float | None = None
    loss: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ModuleReport:
        """The report that was written as JSON."""
        return cls(**{**row, "verdict": TeacherCheck(**row["verdict"])})


@dataclass(frozen=True)
class CompileResult:
    """The modules after all tasks, and what became of them.

    Attributes:
        modules: All modules, distilled or not.
        reports: One for each module that had a teacher.
        runs: By module, how the programs ended that were run to collect its calls; a module that was read back from
            a folder, and one whose teacher was refused, has none.
    """

    modules: dict[str, Module]
    reports: tuple[ModuleReport, ...]
    runs: Mapping[str, ProgramTally] = field(default_factory=dict)
