"""A shallower student that begins with some of its teacher's layers (as DistilBERT does, Sanh et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tutelage.errors import InputError


def spread_layers(teacher_depth: int, student_depth: int) -> list[int]:
    """Which teacher layers (from 0) to copy, evenly spread from the first to the last; one alone is the first.

    Raises:
        InputError: a student that is deeper than its teacher, or has no layer.
    """
    if not 1 <= student_depth <= teacher_depth:
        raise InputError(f"{student_depth} of {teacher_depth} layers cannot be copied", where="student_depth")
    if student_depth == 1:
        return [0]
    return [round(i * (teacher_depth - 1) / (student_depth - 1)) for i in range(student_depth)]


def copy_layers(
    student: Sequence[nn.Module] | nn.ModuleList,
    teacher: Sequence[nn.Module] | nn.ModuleList,
    layers: Sequence[int] | None = None,
) -> list[int]:
    """Copy the weights and buffers of teacher layers into the student's layers, in order.

    Args:
        student: its layers, changed in place.
        teacher: its layers; they stay as they are.
        layers: which of them (from 0), one for each of the student's; None: :func:`spread_layers`.

    Returns:
        The layers that were copied.

    Raises:
        InputError: another number of layers, an index outside the teacher, or layers of different shapes.
    """
    chosen = spread_layers(len(teacher), len(student)) if layers is None else list(layers)
    if len(chosen) != len(student) or any(not 0 <= layer < len(teacher) for layer in chosen):
        raise InputError(
            f"layers {chosen} of {len(teacher)} for a student of {len(student)}",
            where="layers",
            remedy="name one teacher layer, counted from 0, for each layer of the student",
        )
    for place, layer in enumerate(chosen):
        student_state, other = student[place].state_dict(), teacher[layer].state_dict()
        different = [
            name
            for name in {*student_state, *other}
            if name not in student_state or name not in other or student_state[name].shape != other[name].shape
        ]
        if different:
            raise InputError(
                f"layer {layer} of the teacher does not fit: {min(different)} differs",
                where=f"student layer {place}",
                remedy="build the student with the teacher's width and layer type",
            )
        student[place].load_state_dict(other)
    return chosen
