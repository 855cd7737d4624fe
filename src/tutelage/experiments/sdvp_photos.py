"""SDVP on real photographs: the pretrained ImageNet classifier learns a shop's thumbnails and keeps what it knew.

Module: CATEGORY, EfficientNet-Lite0 as packaged, of which the last layer is trained. Teacher: a small network trained in
place on labelled thumbnails of Fashion-MNIST, 28 x 28 grey photographs of clothes. VisProg programs call the module on
thumbnails without labels; the teacher labels those calls; crops of other photographs are replayed. All figures are on
photographs that no arm has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tutelage import assets
from tutelage.datasets import fashion_mnist
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.experiments import Experiment, Metric, better, not_worse
from tutelage.experiments._classification import SELECTION, train_student
from tutelage.modules.classification import ClassifierConfig
from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
from tutelage.modules.pretrained.last_layer import LastLayerClassifier
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.visual_module import CallLabel
from tutelage.programs.types import Call, Module, Value
from tutelage.programs.values import Image
from tutelage.sdvp.baselines import RoutedModule
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question, solve
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.seeds import derive, numpy_rng
from tutelage.storage import fingerprint
from tutelage.systems._toy import SmallCNN, build_with_seed

KINDS = {
    "t-shirt": ("jersey",),  # the class is "jersey, T-shirt, tee shirt"
    "pullover": ("sweatshirt", "cardigan"),
    "coat": ("trench coat", "fur coat", "lab coat"),
    "sandal": ("sandal", "clog"),
    "sneaker": ("running shoe", "Loafer"),
    "bag": ("purse", "mailbag", "plastic bag", "backpack"),
}
"""The kinds of clothes that ImageNet has a class for: the module's word for each, and kindred classes, with which a second
figure of the pretrained module is counted."""
WORDS = tuple(words[0] for words in KINDS.values())
REPLAYED = ("camera.png", "china.jpg", "coins.png", "horse.png", "page.png")
REPORTED = ("astronaut.png", "chelsea.png", "coffee.png", "flower.jpg", "motorcycle_left.png", "rocket.jpg")
"""The eleven photographs of packages, every other one by name: those that are replayed, and those that are reported on."""
SELECTED = REPLAYED[:2]
"""Those that selection seeds are scored on, which then are not replayed."""
RIGHT = {
    "chelsea.png": ("tabby", "tiger cat", "Egyptian cat"),
    "coffee.png": ("espresso", "cup", "coffee mug"),
    "motorcycle_left.png": ("moped", "motor scooter"),
    "rocket.jpg": ("missile", "projectile"),
    "camera.png": ("tripod",),
    "china.jpg": ("palace", "monastery"),
}
"""The right words for a photograph, where ImageNet has one for it."""
WHAT = "ANSWER0=CATEGORY(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"
SAME = (
    "ANSWER0=CATEGORY(image=LEFT)\nANSWER1=CATEGORY(image=RIGHT)\n"
    "ANSWER2=EVAL(expr='{ANSWER0} == {ANSWER1}')\nFINAL_RESULT=RESULT(var=ANSWER2)"
)
OPTIONS = SdvpOptions("visprog", settings=TrainingSettings(steps=200, batch_size=32, lr=1e-3, warmup=20, clip=5.0))
"""Settled with seed 100."""

CLOTHES, PAIRS = "new task: the kind of clothes, right, %", "new task: are two of one kind, right, %"
KEPT, NAMED = "kept: same answer as packaged, other photographs, %", "kept: right word, other photographs, %"


@dataclass(frozen=True)
class Sizes:
    """How many pictures: labelled ones of the teacher, of its check, un-annotated ones, views of a replayed and of a
    reported photograph, and reported thumbnails."""

    teacher: int = 3000
    steps: int = 250
    probe: int = 40
    collect: int = 240
    replay_views: int = 24
    report_views: int = 20
    report: int = 200


SMOKE = Sizes(24, 2, 0, 8, 1, 1, 8)
SMOKE_OPTIONS = replace(OPTIONS, settings=replace(OPTIONS.settings, steps=3, warmup=1), filters=Filters(0.0))
"""No probe and no filter: the plumbing of an untrained teacher is run to its end."""


@dataclass(frozen=True)
class PhotoStudy:
    """The parts of one seed: the pretrained module, the task with its teacher, and the questions that are reported."""

    module: LastLayerClassifier
    task: SdvpTask
    clothes: Sequence[Question]
    pairs: Sequence[Question]
    other: Sequence[Question]
    options: SdvpOptions = OPTIONS

    def modules(self, category: Module | None = None) -> dict[str, Module]:
        """All modules, with ``category`` in the packaged one's place."""
        return {**symbolic_modules(), "CATEGORY": category or self.module}

    def distilled(self, replay: bool) -> Module:
        """The module after SDVP, with or without replay."""
        options = replace(self.options, replay=replay, seed=derive(0, self.task.name) % 2**31)
        return distill_task(self.modules(), self.task, options).modules["CATEGORY"]

    def arms(self) -> dict[str, Module]:
        """CATEGORY of every arm, by name."""
        return {
            "as packaged": self.module,
            "replaced by the teacher": RoutedModule(self.module, self.task.teachers["CATEGORY"], replaced=True),
            "distilled without replay": self.distilled(replay=False),
            "SDVP": self.distilled(replay=True),
        }

    def answers(self, questions: Sequence[Question], category: Module) -> list[Value]:
        """What the programs answer."""
        return [trace.answer for trace in solve(questions, self.modules(category), "visprog")]


def photo_study(seed: int, smoke: bool = False) -> PhotoStudy:
    """The parts of a seed. Selection seeds see neither the published test images nor the reported photographs.

    Raises:
        AssetAbsent, WrongHash: the networks or photographs are not here; the remedy is the command that brings them.
    """
    sizes, selecting = SMOKE if smoke else Sizes(), seed in SELECTION
    module, photographs = _blank() if smoke else (LastLayerClassifier.pretrained(), _photographs())
    train, test = _clothes(seed, selecting, smoke)
    rng = numpy_rng(seed, "sdvp-photos")
    order = rng.permutation(len(train[1]))
    ends = np.cumsum([sizes.teacher, sizes.probe, sizes.collect])
    labelled, probe, collected = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] : ends[2]]
    teacher = _teacher(train[0][labelled], train[1][labelled], sizes.steps, seed)
    reported = numpy_rng(0, "sdvp-photos", "report")  # the same for all seeds
    shown = reported.permutation(len(test[1]))[: sizes.report]
    replayed, scored = (REPLAYED[2:], SELECTED) if selecting else (REPLAYED, REPORTED)
    pictures, labels = [thumbnail(train[0][i]) for i in probe], [WORDS[train[1][i]] for i in probe]
    task = SdvpTask(
        f"photos-{seed}",
        questions=_what([thumbnail(train[0][i]) for i in collected], [None] * sizes.collect, "clothes"),
        teachers={"CATEGORY": teacher},
        probe={"CATEGORY": [(Call("CATEGORY", {"image": p}), CallLabel(w)) for p, w in zip(pictures, labels, strict=True)]},
        replay=[q for name in replayed for q in views(photographs[name], sizes.replay_views, rng, name)],
    )
    found = [thumbnail(test[0][i]) for i in shown]
    words = [WORDS[test[1][i]] for i in shown]
    other = [q for name in scored for q in views(photographs[name], sizes.report_views, reported, name)]
    return PhotoStudy(module, task, _what(found, words, "clothes"), _same(found, words), other, SMOKE_OPTIONS if smoke else OPTIONS)


def thumbnail(pixels: np.ndarray) -> Image:
    """Grey [28, 28] as published, which is a negative, as an image on white."""
    return Image.from_array(np.repeat(255 - pixels[None], 3, 0))


def views(image: Image, count: int, rng: np.random.Generator, name: str) -> list[Question]:
    """Questions about random squares of a photograph, 60 to 100 % of its shorter side wide."""
    cut = []
    for _ in range(count):
        side = int(rng.uniform(0.6, 1) * min(image.width, image.height))
        x, y = (int(rng.integers(0, size - side + 1)) for size in (image.width, image.height))
        cut.append(image.crop(x, y, x + side, y + side))
    return _what(cut, [None] * count, name)


def _what(images: Sequence[Image], answers: Sequence[str | None], kind: str) -> list[Question]:
    return [
        Question(f"{kind}-{i}", "photos", {"IMAGE": image}, "What is this?", {"visprog": WHAT}, answer, kind, f"{kind}-{i}")
        for i, (image, answer) in enumerate(zip(images, answers, strict=True))
    ]


def _same(images: Sequence[Image], words: Sequence[str]) -> list[Question]:
    """Each image beside another one: of its kind every other time."""
    questions = []
    for i, (image, word) in enumerate(zip(images, words, strict=True)):
        others = [j for j, other in enumerate(words) if j != i and (other == word) == (i % 2 == 0)] or [i]
        other = others[i % len(others)]
        pair, answer = {"LEFT": image, "RIGHT": images[other]}, words[other] == word
        questions.append(Question(f"pair-{i}", "photos", pair, "Are both of one kind?", {"visprog": SAME}, answer, "pair"))
    return questions


def _teacher(images: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> ModuleTeacher:
    """A specialist of 24,000 parameters; it answers about grey thumbnails alone."""
    data = TensorData(_grey(images), torch.from_numpy(labels))
    start = build_with_seed(lambda: SmallCNN(len(WORDS), 16, 64, stride=2), seed, "teacher")
    network = train_student(start, data, steps=steps, batch_size=64, lr=3e-3, seed=seed, warmup=steps // 10).eval()

    def answer(calls: Sequence[Call]) -> list[CallLabel]:
        pixels = np.stack([255 - call.args["image"].bytes[0] for call in calls])
        with torch.no_grad():
            shares = network(_grey(pixels)).softmax(1).tolist()
        dists = [dict(zip(WORDS, row, strict=True)) for row in shares]
        return [CallLabel(max(dist, key=dist.__getitem__), dist, max(dist.values())) for dist in dists]

    return ModuleTeacher("clothes specialist", fingerprint(seed, steps, len(labels)), _is_thumbnail, answer)


def _is_thumbnail(call: Call) -> bool:
    return call.args["image"].root.shape == (3, 28, 28)


def _grey(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.copy())[:, None].float() / 255


def _clothes(seed: int, selecting: bool, smoke: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, numbers of their kinds) to train and to report on; while selecting, both from the published train part."""
    if smoke:
        rng = numpy_rng(seed, "smoke")
        parts = [(rng.integers(0, 256, (64, 28, 28), np.uint8), np.arange(64) % 6) for _ in range(2)]
    elif selecting:
        images, labels = fashion_mnist.load("train")
        parts = [(images[:-10_000], labels[:-10_000]), (images[-10_000:], labels[-10_000:])]
    else:
        parts = [fashion_mnist.load("train"), fashion_mnist.load("test")]
    if smoke:
        return parts
    numbers = np.full(10, -1)
    numbers[[fashion_mnist.CLASSES.index(kind) for kind in KINDS]] = np.arange(len(KINDS))
    return [(images[numbers[labels] >= 0], numbers[labels][numbers[labels] >= 0]) for images, labels in parts]


def _photographs() -> dict[str, Image]:
    """The photographs of packages by name."""
    files = {name: path for asset in ("photos", "photos-more") for name, path in assets.verify(asset).items()}
    return {name: Image.from_file(files[name]) for name in (*REPLAYED, *REPORTED)}


def _blank() -> tuple[LastLayerClassifier, dict[str, Image]]:
    """An untrained module and noise for photographs: the plumbing, without a download."""
    rng = numpy_rng(0, "noise")
    noise = {name: Image.from_array(rng.integers(0, 256, (3, 48, 64), np.uint8)) for name in (*REPLAYED, *REPORTED)}
    return LastLayerClassifier.of(ImageNetClassifier.build(ClassifierConfig((*WORDS, "other"), 32), 0)), noise


def share(hits: Sequence[bool]) -> float:
    """How many of ``hits`` are true, %."""
    return 100 * sum(hits) / len(hits)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Mapping[str, float]]:
    """All arms on the same held-out pictures."""
    study = photo_study(seed, smoke)
    packaged, named = study.answers(study.other, study.module), [q.kind in RIGHT for q in study.other]
    figures: dict[str, dict[str, float]] = {}
    for name, category in study.arms().items():
        clothes, pairs, other = (study.answers(part, category) for part in (study.clothes, study.pairs, study.other))
        figures[name] = {
            CLOTHES: share([answer == q.answer for q, answer in zip(study.clothes, clothes, strict=True)]),
            PAIRS: share([answer is q.answer for q, answer in zip(study.pairs, pairs, strict=True)]),
            KEPT: share([answer == before for answer, before in zip(other, packaged, strict=True)]),
            NAMED: share([a in RIGHT[q.kind] for q, a, known in zip(study.other, other, named, strict=True) if known]),
        }
        if category is study.module:
            kindred = {words[0]: words for words in KINDS.values()}
            near = share([answer in kindred[str(q.answer)] for q, answer in zip(study.clothes, clothes, strict=True)])
            figures["as packaged, kindred words counted"] = {CLOTHES: near}
    return figures


experiment = Experiment(
    metric=CLOTHES,
    further_metrics=[Metric(PAIRS), Metric(KEPT), Metric(NAMED)],
    claims=[
        better("SDVP", "as packaged"),
        better("SDVP", "as packaged, kindred words counted"),
        better("SDVP", "as packaged", metric=PAIRS),
        not_worse("SDVP", "distilled without replay", 2.0),
        better("SDVP", "distilled without replay", metric=KEPT),
        better("SDVP", "distilled without replay", metric=NAMED),
        not_worse("SDVP", "as packaged", 5.0, metric=NAMED),
    ],
    run=run,
    limits="The new task has 200 held-out photographs of Fashion-MNIST's test part (six of its ten kinds, 28 x 28 grey pixels), "
    "the same in every seed. Only eleven other photographs come inside packages: kept skills are measured on 20 views each of six "
    "of them, and the other five are replayed; right words are counted on the four of the six that ImageNet has a word for. "
    "Deviations are over teachers, collected pictures, replayed views and training, not over reported photographs. Only the last "
    "layer learns. The teacher has labels of 3,000 thumbnails, the module none.",
)
