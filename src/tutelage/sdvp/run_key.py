"""What decides the result of a task, by name: a folder that was made under other values is refused, and says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from tutelage.programs.types import Module
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question
from tutelage.sdvp.task import SdvpTask
from tutelage.storage import fingerprint


def run_settings(task: SdvpTask, modules: Mapping[str, Module], options: SdvpOptions) -> dict[str, Any]:
    """The settings of a run folder: options field by field; versions of modules and teachers; questions (programs, answers
    and gold values), the pixels of their pictures, replayed and guarded questions, and the probe as fingerprints."""
    return {
        "options": _plain(options),
        "modules": {name: module.version for name, module in modules.items()},
        "teachers": {
            name: {
                "name": teacher.name,
                "version": teacher.version,
                "temperature": teacher.temperature,
                "label_related_calls": teacher.label_related_calls,
            }
            for name, teacher in task.teachers.items()
        },
        "questions": fingerprint([_words(question) for question in task.questions]),
        "pictures": fingerprint([_pictures(question) for question in task.questions]),
        "steps_factor": task.steps_factor,
        "replay": _all(task.replay),
        "guarded": _all(task.guarded),
        "probe": {
            name: fingerprint([[call.module, _arguments(call.args), repr(label)] for call, label in calls])
            for name, calls in task.probe.items()
        },
        "probe questions": _all(task.probe_questions),
    }


def _all(questions: Sequence[Question]) -> str:
    return fingerprint([[_words(question), _pictures(question)] for question in questions])


def _words(question: Question) -> list[Any]:
    gold = sorted((name, repr(list(values))) for name, values in question.gold.items())
    return [question.id, question.text, sorted(question.programs.items()), repr(question.answer), gold]


def _pictures(question: Question) -> list[Any]:
    return sorted((name, image.key) for name, image in question.images.items())


def _arguments(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((name, getattr(value, "key", None) or repr(value)) for name, value in arguments.items())


def _plain(value: Any) -> Any:
    """Dataclasses as dicts that name their kind; what JSON has no form for as its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
