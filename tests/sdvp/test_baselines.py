from __future__ import annotations

from tutelage.modules.visual_module import CallLabel
from tutelage.programs.types import Call, RuntimeFailure
from tutelage.sdvp.baselines import RoutedModule
from tutelage.sdvp.teachers import ModuleTeacher

from . import small

CALLS = [Call("COLOR", {"image": small.picture(i, "red")}) for i in range(3)]


def teacher() -> ModuleTeacher:
    """It covers all but the last call; sure of the first, not of the second."""
    covered = [call.args["image"].key for call in CALLS[:2]]
    sure = dict(zip(covered, (0.9, 0.5), strict=True))
    return ModuleTeacher(
        "t",
        "1",
        lambda call: call.args["image"].key in covered,
        lambda calls: [CallLabel("purple", {"purple": sure[c.args["image"].key]}, sure[c.args["image"].key]) for c in calls],
    )


def test_the_confident_teacher_answers_and_the_module_the_rest() -> None:
    module = small.color()
    said = RoutedModule(module, teacher(), min_confidence=0.8).run(CALLS)
    assert said.values == ["purple", *module.run(CALLS).values[1:]]
    assert said.distributions[0] == {"purple": 0.9} and set(said.distributions[1]) == set(small.COLORS)


def test_a_replaced_module_fails_where_its_teacher_has_nothing_to_say() -> None:
    said = RoutedModule(small.color(), teacher(), replaced=True).run(CALLS)
    assert said.values[:2] == ["purple", "purple"] and isinstance(said.values[2], RuntimeFailure)


def test_the_version_names_module_teacher_gate_and_temperature() -> None:
    module = small.color()
    versions = {
        RoutedModule(module, teacher()).version,
        RoutedModule(module, teacher(), min_confidence=0.5).version,
        RoutedModule(module, teacher().calibrated(2.0)).version,
        RoutedModule(small.color(1), teacher()).version,
        RoutedModule(module, teacher(), replaced=True).version,
    }
    assert len(versions) == 5
