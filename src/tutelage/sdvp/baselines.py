"""The alternatives to distillation that an engineer would try first: replace a module by its teacher, or route to it."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.programs.types import Call, Module, ModuleOutputs, RuntimeFailure
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.storage import fingerprint


class RoutedModule:
    """The teacher answers where its capabilities cover the call and its calibrated confidence passes ``min_confidence``; else the
    frozen module does. ``min_confidence`` 0 and no module is the replaced module: what the teacher cannot say fails."""

    symbolic = False

    def __init__(self, module: Module, teacher: ModuleTeacher, min_confidence: float = 0.8, replaced: bool = False):
        self.name, self.signature, self.batch_size = module.name, module.signature, module.batch_size
        self.module, self.teacher, self.min_confidence, self.replaced = module, teacher, min_confidence, replaced
        self.version = fingerprint(module.version, teacher.version, teacher.temperature, min_confidence, replaced)

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """One answer a call, from teacher or module."""
        labels = self.teacher.label(calls)
        values: list[object] = [None] * len(calls)
        dists: list[dict[str, float] | None] = [None] * len(calls)
        rest = []
        for i, label in enumerate(labels):
            if label is not None and (self.replaced or label.confidence >= self.min_confidence):
                values[i], dists[i] = label.value, dict(label.probabilities) if label.probabilities else None
            elif self.replaced:
                values[i] = RuntimeFailure(f"the teacher in place of {self.name} cannot answer this call")
            else:
                rest.append(i)
        known: list[bool] = [False] * len(calls)
        if rest:
            outputs = self.module.run([calls[i] for i in rest])
            for n, i in enumerate(rest):
                values[i] = outputs.values[n]
                dists[i] = outputs.distributions[n] if outputs.distributions else None
                known[i] = outputs.out_of_vocabulary[n] if outputs.out_of_vocabulary else False
        return ModuleOutputs(values, dists, known)
