"""Your programs call your module; a teacher that knows one task makes the module better at it, and the module keeps the rest.

```python
from tutelage import sdvp

questions = sdvp.questions_from("programs.jsonl", "images")  # your questions, each with its program
result = sdvp.compile(questions, modules, teachers={"COLOR": teacher})  # your modules, and what knows the task better
result.modules["COLOR"].save("color")
```

From the command line the same runs step by step: `tutelage sdvp collect`, `label`, `train`
([stepwise, with files](../sdvp.md)).

A visual program (VisProg, ViperGPT) calls perception modules, and no gradient passes through it. SDVP (stepwise
distillation for visual programming; Wan et al., 2023, arXiv 2309.09809) trains the modules nevertheless. Programs run on
questions without answers, and each call of a module is kept. A teacher labels the calls, and the module learns them by
`L = L_step + lambda L_self`: its own loss on the labels, and the distance to its former self on replayed calls. So a
small specialist improves a general module, which keeps the tasks that it learned before.

The authors published no code. What the paper leaves open is our choice, listed in [SDVP, top to bottom](../sdvp.md),
which reads the pipeline in the order of its data. The experiment below is small: one module that reads digits. The study
over fifteen tasks is `tutelage sdvp study` ([results](../results.md)).

Every other method of the library can serve inside SDVP: a network that it distils becomes a module or a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from tutelage.distillation.job import TrainingSettings
from tutelage.modules.classification import Classifier, ClassifierConfig
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call
from tutelage.programs.values import Image
from tutelage.registry import system
from tutelage.sdvp.compile import compile as compile_modules
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question, accuracy
from tutelage.seeds import numpy_rng

COLORS = ("red", "green", "blue")
PROGRAM = "ANSWER0=COLOR(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"


@system("sdvp", kind="programs")
class SDVP:
    """Stepwise distillation for visual programming: task-specific teachers improve the modules that programs call."""

    compile = staticmethod(compile_modules)

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        """A module that names colours, before and after a teacher of it."""
        modules = {**symbolic_modules(), "COLOR": ColorName.with_classes(*COLORS, pixels=8, seed=seed)}
        questions, held_out = _questions(seed, "learned", 30), _questions(seed, "held out", 15)
        options = SdvpOptions(settings=TrainingSettings(steps=40, batch_size=16, lr=2e-2, clip=5.0), seed=seed)
        after = compile_modules(questions, modules, {"COLOR": _brightest_channel}, options=options).modules
        return {"accuracy before": accuracy(held_out, modules), "accuracy after": accuracy(held_out, after)}


class ColorName(Classifier):
    """COLOR(image): which of three colours."""

    name = "COLOR"

    @classmethod
    def build_network(cls, config: ClassifierConfig) -> nn.Module:
        """A linear map of a 2 x 2 thumbnail."""
        return nn.Sequential(nn.AvgPool2d(config.pixels // 2), nn.Flatten(), nn.Linear(12, len(config.answers)))


def _questions(seed: int, part: str, count: int) -> list[Question]:
    """Noise that is brighter in one channel, and the program that asks for its name."""
    rng, found = numpy_rng(seed, "colour questions", part), []
    for i in range(count):
        pixels = rng.integers(0, 120, (3, 12, 12), dtype=np.uint8)
        pixels[i % 3] += 100
        image = Image(pixels)
        text, programs = "What color is it?", {"visprog": PROGRAM}
        found.append(Question(f"{part} {i}", "colours", {"IMAGE": image}, text, programs, COLORS[i % 3], image_id=image.root_key))
    return found


def _brightest_channel(calls: Sequence[Call]) -> list[str]:
    """A teacher that needs no network."""
    return [COLORS[int(call.args["image"].bytes.mean((1, 2)).argmax())] for call in calls]
