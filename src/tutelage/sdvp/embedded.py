"""The embedded modules: generalists that know domain A broadly, specialists that know one skill of one domain.

Trained by the project on first use and kept by a hash of everything that shaped them. All settings are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage import files
from tutelage.distill.lesson import Settings
from tutelage.distill.trainer import train
from tutelage.modules.folding import folded, normalised
from tutelage.modules.small import AskConfig, Loc, LocConfig, Verify, Vqa
from tutelage.modules.visual_module import Label, VisualModule
from tutelage.modules.words import Vocabulary
from tutelage.programs.language import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp.lesson import Stepwise, lesson
from tutelage.seeds import derive, numpy_rng
from tutelage.tasks.world import scene as world
from tutelage.tasks.world.render import render

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
Examples = tuple[list[Call], list[Label]]


@dataclass(frozen=True)
class Study:
    """How one embedded module is trained: scenes of a domain, steps, batch, learning rate."""

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
    return [(scene, Image.from_array(render(scene), f"{stream}/{scene.id}")) for scene in made]


def loc_examples(found: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every shape looked for in every scene, with its boxes; half of the scenes are cut to a random half as well."""
    calls, labels = [], []
    for scene, image in found:
        views = [(image, 0, 0)]
        if rng.random() < 0.3:
            views.append(_half(image, rng))
        for view, left, top in views:
            for shape in world.SHAPES:
                boxes = [_inside(thing, view, left, top) for thing in scene.of(shape)]
                calls.append(Call("LOC", {"image": view, "object": shape}))
                labels.append(Label([box for box in boxes if box is not None]))
    return calls, labels


def _half(image: Image, rng: np.random.Generator) -> tuple[Image, int, int]:
    cut = int(rng.integers(12, 36))
    x1, y1, x2, y2 = [(0, 0, cut, 48), (cut, 0, 48, 48), (0, 0, 48, cut), (0, cut, 48, 48)][int(rng.integers(4))]
    return image.crop(x1, y1, x2, y2), x1, y1


def _inside(thing: world.Thing, view: Image, left: int, top: int) -> Box | None:
    """The thing's box in the view, or None where less than half of it is seen."""
    x1, y1, x2, y2 = thing.box
    box = Box(max(0, x1 - left), max(0, y1 - top), min(view.width, x2 - left), min(view.height, y2 - top))
    return box if box.area >= 0.5 * thing.w * thing.h and box.x2 > box.x1 and box.y2 > box.y1 else None


def crop_of(image: Image, thing: world.Thing, rng: np.random.Generator) -> Image:
    """What CROP gives for a slightly wrong box of the thing."""
    wrong = rng.uniform(-0.12, 0.12, 4) * [thing.w, thing.h, thing.w, thing.h]
    x1, y1, x2, y2, _ = Box(*(np.array(thing.box) + wrong)).scaled(1.5)
    return image.crop(x1, y1, x2, y2)


def vqa_examples(found: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every thing with all that can be asked of it."""
    calls, labels = [], []

    def ask(image: Image, question: str, answer: str) -> None:
        calls.append(Call("VQA", {"image": image, "question": question}))
        labels.append(Label(answer))

    for scene, image in found:
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


def verify_examples(found: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """Every thing with true and false properties in equal number."""
    calls, labels = [], []
    for scene, image in found:
        for thing in scene.things:
            crop = crop_of(image, thing, rng)
            noun = thing.shape if rng.random() < 0.7 else "object"
            for _ in range(4):
                word, truth = _property(thing, rng)
                calls.append(Call("VERIFY", {"image": crop, "object": noun, "property": word}))
                labels.append(Label(truth))
    return calls, labels


def _property(thing: world.Thing, rng: np.random.Generator) -> tuple[str, bool]:
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


def school(module: VisualModule, examples: Examples, study: Study, seed: int, name: str) -> VisualModule:
    """``module`` trained on gold labels."""
    settings = Settings(
        steps=study.steps,
        batch_size=study.batch,
        lr=study.lr,
        weight_decay=study.weight_decay,
        warmup=study.steps // 10,
        seed=seed,
        checkpoint_every=0,
        log_every=200,
        channels_last=True,
        clip=5.0,
    )
    young = module.taught(normalised(module.network))
    task = lesson(young, module.exercise(*examples), None, settings, Stepwise.Config(alpha=0.0), name=name)
    return module.taught(folded(train(task).student))


Maker = Callable[[Sequence[tuple[world.Scene, Image]], np.random.Generator], Examples]


def trained(module: VisualModule, make: Maker, study: Study, seed: int, store: files.Store | None = None) -> VisualModule:
    """``module`` after its study, from the store where it has been trained before."""
    key = files.fingerprint("embedded", 1, type(module).__name__, module.version, study, seed, world.DOMAINS[study.domain])
    if store is not None and store.path(key).exists():
        return module.load_weights(store.path(key))
    found = scenes(study.domain, study.scenes, seed, f"pretrain/{module.name}")
    taught = school(module, make(found, numpy_rng(seed, "examples", module.name)), study, seed, f"{module.name} {study.domain}")
    if store is not None:
        taught.save(store.path(key))
    return taught


def generalists(seed: int, store: files.Store | None = None, width: int = 16) -> dict[str, VisualModule]:
    """LOC, VQA and VERIFY, trained broadly on domain A."""
    recipes: dict[str, tuple[VisualModule, Any, Study]] = {
        "LOC": (Loc.build(LocConfig(world.SHAPES, width), seed), loc_examples, Study("A", 5000, 1000)),
        "VQA": (Vqa.build(AskConfig(VOCABULARY, width), seed), vqa_examples, Study("A", 5000, 1200)),
        "VERIFY": (Verify.build(AskConfig(VOCABULARY, width), seed), verify_examples, Study("A", 4000, 800)),
    }
    return {name: trained(module, make, study, seed, store) for name, (module, make, study) in recipes.items()}


def color_examples(found: Sequence[tuple[world.Scene, Image]], rng: np.random.Generator) -> Examples:
    """The colour of every thing, and nothing else."""
    calls, labels = [], []
    for scene, image in found:
        for thing in scene.things:
            noun = thing.shape if rng.random() < 0.6 else "object"
            calls.append(Call("VQA", {"image": crop_of(image, thing, rng), "question": f"What color is the {noun}?"}))
            labels.append(Label(thing.color))
    return calls, labels


COLOR_VOCABULARY = Vocabulary((("color", world.COLORS),), ("object", *world.SHAPES))


def color_specialist(domain: str, seed: int, store: files.Store | None = None, width: int = 8) -> VisualModule:
    """A small VQA network that knows the colours of one domain."""
    blank = Vqa.build(AskConfig(COLOR_VOCABULARY, width), derive(seed, "color", domain) % 2**31)
    return trained(blank, color_examples, Study(domain, 2500, 500), seed, store)


def loc_specialist(domain: str, seed: int, store: files.Store | None = None, width: int = 8) -> VisualModule:
    """A small LOC network that knows one domain."""
    blank = Loc.build(LocConfig(world.SHAPES, width), derive(seed, "loc", domain) % 2**31)
    return trained(blank, loc_examples, Study(domain, 3000, 800), seed, store)
