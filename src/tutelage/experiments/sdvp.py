"""SDVP on handwritten digits: a module that reads ten digits learns faint ones from a teacher of five of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.experiments import Experiment, Metric, better, not_worse
from tutelage.experiments._classification import digits, train_student
from tutelage.modules.classification import Classifier, ClassifierConfig
from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call, Module
from tutelage.programs.values import Box, Image
from tutelage.sdvp.compile import compile as compile_modules
from tutelage.sdvp.options import SdvpOptions, with_strategy
from tutelage.sdvp.questions import Question, accuracy
from tutelage.seeds import derive, numpy_rng

DIGITS, TEACHER_KNOWS = tuple("0123456789"), tuple("01234")
NEW, OLD, UNSEEN = "faint 0 to 4 (the task), %", "plain 0 to 9 (known before), %", "faint 5 to 9 (never trained on), %"
PROGRAM = """BOX0=LEFT_HALF(image=IMAGE)
IMAGE0=CUT(image=IMAGE,box=BOX0)
ANSWER0=DIGIT(image=IMAGE0)
FINAL_RESULT=RESULT(var=ANSWER0)"""


class Digit(Classifier):
    """DIGIT(image): the digit in the image, by two convolutions and two linear maps, without state."""

    name = "DIGIT"

    @classmethod
    def build_network(cls, config: ClassifierConfig) -> nn.Module:
        """8 x 8 pixels."""
        convolutions = nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, len(config.answers)))


@module
def LEFT_HALF(image: Image) -> list[Box]:
    """The left half of the image."""
    return [Box(0, 0, image.width / 2, image.height)]


@module
def CUT(image: Image, box: list[Box]) -> Image:
    """What is inside the first box."""
    return image.crop(*box[0][:4])


def questions(data: TensorData, part: str, faint: bool, known: Sequence[str] = DIGITS) -> list[Question]:
    """Which digit is on the left? The right half holds another; faint images have half the contrast and noise."""
    rng, found = numpy_rng(0, "digit questions", part), []
    pixels = (data.inputs[:, 0].numpy() * 255).astype(np.float32)
    if faint:
        pixels = (80 + 0.5 * pixels + rng.normal(0, 30, pixels.shape)).clip(0, 255)
    for i, label in enumerate(data.labels.tolist()):
        if DIGITS[label] in known:
            pair = np.concatenate([pixels[i], pixels[rng.integers(len(pixels))]], axis=1)
            image = Image(np.repeat(pair.astype(np.uint8)[None], 3, axis=0))
            text, programs = "Which digit is on the left?", {"visprog": PROGRAM}
            found.append(Question(f"{part} {i}", part, {"IMAGE": image}, text, programs, DIGITS[label], image_id=image.root_key))
    return found


def trained(reader: Digit, of: Sequence[Question], seed: int, steps: int) -> Digit:
    """``reader`` after training on labels."""
    left = [Call("DIGIT", {"image": question.images["IMAGE"].crop(0, 0, 8, 8)}) for question in of]
    labels = torch.tensor([reader.config.answers.index(str(question.answer)) for question in of])
    data = TensorData(reader.encode(left)["pixels"], labels)
    plain = train_student(reader.network.network, data, steps=steps, batch_size=64, lr=3e-3, warmup=20, seed=seed)
    reader.network.network.load_state_dict(plain.state_dict())
    return reader


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Mapping[str, float]]:
    """The module frozen, replaced by its teacher, fine-tuned on the teacher's labels, and trained by SDVP."""
    train, test = digits(seed, 797)
    first, second = (TensorData(train.inputs[rows], train.labels[rows]) for rows in (slice(0, 400), slice(400, 797)))
    steps = 4 if smoke else 400
    old, new = questions(first, "old", False), questions(second, "new", True, TEACHER_KNOWS)
    reader = trained(Digit.with_classes(*DIGITS, pixels=8, seed=derive(seed, "module")), old, seed, steps)
    teacher = trained(Digit.with_classes(*TEACHER_KNOWS, pixels=8, seed=derive(seed, "teacher")), new, seed, steps)
    before: dict[str, Module] = {**symbolic_modules(), "LEFT_HALF": LEFT_HALF, "CUT": CUT, "DIGIT": reader}
    tests = {
        NEW: questions(test, "new, held out", True, TEACHER_KNOWS),
        OLD: questions(test, "old, held out", False),
        UNSEEN: questions(test, "unseen, held out", True, DIGITS[5:]),
    }

    def figures(modules: Mapping[str, Module]) -> dict[str, float]:
        return {label: 100 * accuracy(of, modules) for label, of in tests.items()}

    def distilled(options: SdvpOptions) -> dict[str, float]:
        return figures(compile_modules(new, before, {"DIGIT": answers_of(teacher)}, replay=old, options=options).modules)

    settings = TrainingSettings(steps=steps, batch_size=64, lr=2e-3, warmup=20, clip=5.0)
    options = SdvpOptions(settings=settings, seed=seed)
    arms = {
        "frozen": figures(before),
        "replaced by the teacher": figures({**before, "DIGIT": teacher}),
        "fine-tuned": distilled(with_strategy("none", options)),
        "SDVP": distilled(options),
    }
    if all_arms:
        arms |= {f"SDVP with {name} in place of replay": distilled(with_strategy(name, options)) for name in ("ewc", "l2sp")}
    return arms


def answers_of(teacher: Digit) -> Callable[[list[Call]], list[str]]:
    """The teacher as a black box."""
    return lambda calls: [str(value) for value in teacher.run(calls).values]


experiment = Experiment(
    metric=NEW,
    further_metrics=[Metric(OLD), Metric(UNSEEN)],
    claims=[
        better("SDVP", "frozen"),
        not_worse("SDVP", "fine-tuned", 2.0),
        not_worse("SDVP", "frozen", 1.0, metric=OLD),
        better("SDVP", "fine-tuned", metric=OLD),
        better("SDVP", "replaced by the teacher", metric=OLD),
        better("SDVP", "fine-tuned", metric=UNSEEN),
    ],
    run=run,
    limits="The teacher knows five digits. SDVP keeps the plain ones, which are replayed. On faint images of the five other "
    "digits, of which nothing is replayed, it stays above fine-tuning and falls far below the frozen module: to the teacher "
    "they look like its own. One module of 38,000 weights, programs of four steps, 8 x 8 images. The larger study has three "
    "modules and fifteen tasks on drawn scenes.",
)
