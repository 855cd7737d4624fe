"""The toy modules: generalists that know domain A broadly, specialists that know one skill of one domain.

Trained by the project on first use and kept by a hash of everything that shaped them. All settings are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tutelage import storage
from tutelage.datasets import easy_vqa
from tutelage.datasets.synthetic import render as renderer
from tutelage.datasets.synthetic import scene as world
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.modules.batchnorm import add_batchnorm, fold_batchnorm
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Verify, Vqa
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp.objective import StepwiseDistillation, make_job
from tutelage.seeds import derive, numpy_rng

VOCABULARY = Vocabulary(
    (
        ("color", world.COLORS),
        ("shape", world.SHAPES),
        ("pattern", world.PATTERNS),
        ("size", world.SIZES),
        ("number", world.DIGITS),
        ("yes/no", ("yes", "no")),
    ),
    ("object", *world.SHAPES),
)
Examples = tuple[list[Call], list[CallLabel]]


@dataclass(frozen=True)
class ToyTraining:
    """How one toy module is trained: scenes of a domain, steps, batch, learning rate."""

    domain: str
    scenes: int
    steps: int
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 1e-2


def scenes(domain: str, count: int, seed: int, split: str) -> list[tuple[world.Scene, Image]]:
    """``count`` scenes of the stream ``split`` with their pictures."""
    stream = derive(seed, "embedded", split)
    made = [world.make_scene(stream, i, domain) for i in range(count)]
    return [(scene, Image.from_array(renderer.render(scene), f"{stream}/{scene.id}")) for scene in made]


def loc_examples(rendered: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every shape looked for in every scene, with its boxes; half of the scenes are cut to a random half as well."""
    calls, labels = [], []
    for scene, image in rendered:
        views = [(image, 0, 0)]
        if rng.random() < 0.3:
            views.append(_half(image, rng))
        for view, left, top in views:
            for shape in world.SHAPES:
                boxes = [_inside(thing, view, left, top) for thing in scene.of(shape)]
                calls.append(Call("LOC", {"image": view, "object": shape}))
                labels.append(CallLabel([box for box in boxes if box is not None]))
    return calls, labels


def _half(image: Image, rng: np.random.Generator) -> tuple[Image, int, int]:
    cut = int(rng.integers(12, 36))
    x1, y1, x2, y2 = [(0, 0, cut, 48), (cut, 0, 48, 48), (0, 0, 48, cut), (0, cut, 48, 48)][int(rng.integers(4))]
    return image.crop(x1, y1, x2, y2), x1, y1


def _inside(thing: world.SceneObject, view: Image, left: int, top: int) -> Box | None:
    """The thing's box in the view, or None where less than half of it is seen."""
    x1, y1, x2, y2 = thing.box
    box = Box(max(0, x1 - left), max(0, y1 - top), min(view.width, x2 - left), min(view.height, y2 - top))
    return box if box.area >= 0.5 * thing.w * thing.h and box.x2 > box.x1 and box.y2 > box.y1 else None


def crop_of(image: Image, thing: world.SceneObject, rng: np.random.Generator) -> Image:
    """What CROP gives for a slightly wrong box of the thing."""
    wrong = rng.uniform(-0.12, 0.12, 4) * [thing.w, thing.h, thing.w, thing.h]
    x1, y1, x2, y2, _ = Box(*(np.array(thing.box) + wrong)).scaled(1.5)
    return image.crop(x1, y1, x2, y2)


def vqa_examples(rendered: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every thing with all that can be asked of it."""
    calls, labels = [], []

    def ask(image: Image, question: str, answer: str) -> None:
        calls.append(Call("VQA", {"image": image, "question": question}))
        labels.append(CallLabel(answer))

    for scene, image in rendered:
        for thing in scene.things:
            crop = crop_of(image, thing, rng)
            noun = thing.shape if rng.random() < 0.6 else "object"
            ask(crop, f"What color is the {noun}?", thing.color)
            ask(crop, "What shape is the object?", thing.shape)
            ask(crop, f"What size is the {noun}?", thing.size)
            if thing.digit is None:
                ask(crop, f"What pattern is the {noun}?", thing.pattern)
            else:
                ask(crop, "What number is on the sign?", thing.digit)
            word, truth = _property(thing, rng)
            ask(crop, f"Is the {noun} {word}?", "yes" if truth else "no")
    return calls, labels


def verify_examples(rendered: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every thing with true and false properties in equal number."""
    calls, labels = [], []
    for scene, image in rendered:
        for thing in scene.things:
            crop = crop_of(image, thing, rng)
            noun = thing.shape if rng.random() < 0.7 else "object"
            for _ in range(4):
                word, truth = _property(thing, rng)
                calls.append(Call("VERIFY", {"image": crop, "object": noun, "property": word}))
                labels.append(CallLabel(truth))
    return calls, labels


def _property(thing: world.SceneObject, rng: np.random.Generator) -> tuple[str, bool]:
    """A property word and whether the thing has it, true half of the time."""
    kinds: list[tuple[str, Sequence[str]]] = [("color", world.COLORS), ("color", world.COLORS), ("size", world.SIZES)]
    kinds.append(("shape", world.SHAPES))
    if thing.digit is None:
        kinds.append(("pattern", world.PATTERNS))
    kind, words = kinds[int(rng.integers(len(kinds)))]
    own = getattr(thing, kind)
    if rng.random() < 0.5:
        return own, True
    others = [word for word in words if word != own]
    return others[int(rng.integers(len(others)))], False


def train_toy_module(module: VisualModule, examples: Examples, training: ToyTraining, seed: int, name: str) -> VisualModule:
    """``module`` trained on gold labels."""
    settings = TrainingSettings(
        steps=training.steps,
        batch_size=training.batch,
        lr=training.lr,
        weight_decay=training.weight_decay,
        warmup=training.steps // 10,
        seed=seed,
        checkpoint_every=0,
        log_every=200,
        channels_last=True,
        clip=5.0,
    )
    young = module.with_network(add_batchnorm(module.network))
    task = make_job(young, module.training_examples(*examples), None, settings, StepwiseDistillation.Config(alpha=0.0), name=name)
    return module.with_network(fold_batchnorm(train(task).student))


Maker = Callable[[Sequence[tuple[world.Scene, Image]], np.random.Generator], Examples]


def _load_or_train(
    module: VisualModule,
    make: Maker,
    training: ToyTraining,
    seed: int,
    store: storage.ContentStore | None = None,
    quick: bool = False,
) -> VisualModule:
    """``module`` after its study, from the store where it has been trained before; ``quick`` cuts the study to nothing
    but its plumbing."""
    if quick:
        training = replace(training, scenes=min(training.scenes, 20), steps=5)
    look = [Path(str(part.__file__)).read_bytes() for part in (world, renderer)]
    key = storage.fingerprint(
        "embedded", *look, type(module).__name__, module.version, training, seed, world.DOMAINS[training.domain]
    )
    if store is not None and store.path(key).exists():
        return module.load_weights(store.path(key))
    found = scenes(training.domain, training.scenes, seed, f"pretrain/{module.name}")
    trained = train_toy_module(
        module, make(found, numpy_rng(seed, "examples", module.name)), training, seed, f"{module.name} {training.domain}"
    )
    if store is not None:
        trained.save(store.path(key))
    return trained


def color_examples(rendered: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """The colour of every thing, and nothing else."""
    calls, labels = [], []
    for scene, image in rendered:
        for thing in scene.things:
            noun = thing.shape if rng.random() < 0.6 else "object"
            calls.append(Call("VQA", {"image": crop_of(image, thing, rng), "question": f"What color is the {noun}?"}))
            labels.append(CallLabel(thing.color))
    return calls, labels


EASY_COLORS, EASY_SHAPES = easy_vqa.COLORS, easy_vqa.SHAPES
COLORS_ONLY = Vocabulary((("color", world.COLORS),), ("object", *world.SHAPES))
EASY_ONLY = Vocabulary((("color", EASY_COLORS), ("shape", EASY_SHAPES)), ("object",))


def easy_examples(samples: Sequence[easy_vqa.EasyVqaSample]) -> Examples:
    """easy-VQA's own questions after colour and shape, with their published answers."""
    images: dict[int, Image] = {}
    calls, labels = [], []
    for sample in samples:
        if sample.qtype in ("color", "shape"):
            if sample.image_id not in images:
                images[sample.image_id] = Image.from_array(sample.image, f"easy/{sample.image_id}")
            calls.append(Call("VQA", {"image": images[sample.image_id], "question": f"What {sample.qtype} is the shape?"}))
            labels.append(CallLabel(sample.answer))
    return calls, labels


TOY_TRAINING: Mapping[str, ToyTraining] = MappingProxyType(
    {
        "LOC": ToyTraining("A", 5000, 1000),
        "VQA": ToyTraining("A", 5000, 1200),
        "VERIFY": ToyTraining("A", 4000, 800),
        "color": ToyTraining("B", 2500, 500),
        "loc": ToyTraining("B", 4000, 1200),
        "easy": ToyTraining("A", 0, 800),
    }
)
"""How each toy network is trained: LOC, VQA and VERIFY are the generalists, the others specialists of half their
size with one skill each: domain B's colours, domain B's shapes and places, easy-VQA's colours and shapes."""


def load_or_train(seed: int, name: str, store: storage.ContentStore | None = None, quick: bool = False) -> VisualModule:
    """One toy network of a seed by its name in :data:`TOY_TRAINING`; ``quick`` ones are for smoke tests and know nothing."""
    start = derive(seed, "network", name) % 2**31
    blanks: dict[str, tuple[Callable[[], VisualModule], Maker]] = {
        "LOC": (lambda: Loc.build(LocConfig(world.SHAPES), start), loc_examples),
        "VQA": (lambda: Vqa.build(FiLMConfig(VOCABULARY), start), vqa_examples),
        "VERIFY": (lambda: Verify.build(FiLMConfig(VOCABULARY), start), verify_examples),
        "color": (lambda: Vqa.build(FiLMConfig(COLORS_ONLY, 8), start), color_examples),
        "loc": (lambda: Loc.build(LocConfig(world.SHAPES, 8), start), loc_examples),
        "easy": (lambda: Vqa.build(FiLMConfig(EASY_ONLY, 8), start), lambda _, rng: easy_examples(easy_teacher_split(seed))),
    }
    build, make = blanks[name]
    return _load_or_train(build(), make, TOY_TRAINING[name], seed, store, quick)


def generalists(seed: int, store: storage.ContentStore | None = None, quick: bool = False) -> dict[str, VisualModule]:
    """LOC, VQA and VERIFY, trained broadly on domain A."""
    return {name: load_or_train(seed, name, store, quick) for name in ("LOC", "VQA", "VERIFY")}


def easy_teacher_split(seed: int) -> list[easy_vqa.EasyVqaSample]:
    """The part of easy-VQA's train images that its specialist learns from."""
    return split_samples(easy_vqa.load("train"), "teacher", seed)


SPLIT_SHARES = (("teacher", 0.4), ("select", 0.1), ("collect", 0.5))
"""easy-VQA's train images are dealt to these splits; its test images are only reported on."""


def split_samples(samples: Sequence[easy_vqa.EasyVqaSample], split: str, seed: int) -> list[easy_vqa.EasyVqaSample]:
    """The samples of one split of easy-VQA's train part; splits share no image."""
    ids = sorted({sample.image_id for sample in samples})
    order = numpy_rng(seed, "easy-vqa", "deal").permutation(len(ids))
    shares = dict(SPLIT_SHARES)
    names = list(shares)
    low = sum(shares[name] for name in names[: names.index(split)])
    own_ids = {ids[i] for i in order[round(low * len(ids)) : round((low + shares[split]) * len(ids))]}
    return [sample for sample in samples if sample.image_id in own_ids]
