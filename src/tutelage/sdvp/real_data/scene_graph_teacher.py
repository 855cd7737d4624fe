"""Scene graphs as teachers: what the annotators of an image wrote down, as labels of a module's calls.

A graph does not hold all that an image shows. So what it does not speak of gets no label: a thing that it does not name, a
property of a kind of which it lists none. The kinds of properties are read off the functional programs of the questions
that are learned from ("filter color: red"), never off answers. All of this is our choice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tutelage.datasets.gqa import GqaStep, SceneGraph, SceneObject
from tutelage.errors import InputError, did_you_mean
from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.modules.vqa import Vqa
from tutelage.programs.image_cache import FileImage
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.teachers import ModuleTeacher
from tutelage.storage import fingerprint

VISIBLE = 0.5
"""The share of a thing that must lie inside a crop for it to count as seen there."""
_IDS = re.compile(r"\s+\([^()]*\)\s*$")
_NOT = re.compile(r"not\((.*)\)")

PropertyTypes = Mapping[str, frozenset[str]]
"""The words of each kind of property."""


def property_types(semantics: Iterable[Sequence[GqaStep]]) -> PropertyTypes:
    """The words of each kind of property that functional programs filter by, verify or offer."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for semantic in semantics:
        for step in semantic:
            name, _, kind = step.operation.partition(" ")
            if name in ("filter", "verify", "choose") and kind not in ("", "rel", "name") and len(step.dependencies) == 1:
                words = _IDS.sub("", step.argument)
                negated = _NOT.fullmatch(words)
                found[kind].update(word.strip() for word in (negated[1] if negated else words).split("|"))
    return {kind: frozenset(words) - {""} for kind, words in sorted(found.items())}


@dataclass(frozen=True)
class SceneGraphs:
    """Scene graphs by image id (the file's name without its ending), and the kinds of their properties."""

    graphs: Mapping[str, SceneGraph]
    kinds: PropertyTypes

    def visible_objects(self, image: FileImage) -> list[tuple[SceneObject, Box]]:
        """The things of which at least half lies in ``image``, with their boxes there in its pixels, clipped; those nearest
        to its centre first."""
        graph = self.graphs[image.path.stem]
        _, (width, height) = image.album.key_and_size(image.path)
        across, down = width / graph.width, height / graph.height
        left, top, right, bottom = image.region
        found = []
        for number, thing in enumerate(graph.objects.values()):
            whole = Box(thing.x * across, thing.y * down, (thing.x + thing.w) * across, (thing.y + thing.h) * down)
            part = Box(max(whole.x1, left), max(whole.y1, top), min(whole.x2, right), min(whole.y2, bottom))
            if part.x2 > part.x1 and part.y2 > part.y1 and part.area >= VISIBLE * whole.area:
                (x, y), box = whole.center, Box(part.x1 - left, part.y1 - top, part.x2 - left, part.y2 - top)
                found.append((abs(2 * x - left - right) + abs(2 * y - top - bottom), number, thing, box))
        return [(thing, box) for _, _, thing, box in sorted(found, key=lambda row: row[:2])]

    def locate(self, call: Call) -> list[Box] | None:
        """LOC: the boxes of what the phrase names, with all the properties that it asks for; None if there is none."""
        phrase = str(call.args["object"])
        return [box for thing, box in self.visible_objects(call.args["image"]) if _is(thing, phrase)] or None

    def ask(self, call: Call) -> str | None:
        """VQA: the thing's one property of the asked kind, which of those offered it has, or yes and no to one."""
        question = str(call.args["question"]).lower().rstrip("? ")
        thing = self._named(call.args["image"], question)
        if thing is None:
            return None
        first = question.split(" ", 1)[0]
        if first not in ("is", "are", "does", "do"):
            kinds = [kind for kind in self.kinds if _holds(question, kind)]
            own = [word for word in thing.attributes if kinds and word in self.kinds[kinds[0]]]
            return own[0] if len(own) == 1 else None
        offered = {word for words in self.kinds.values() for word in words if _holds(question, word) and word != thing.name}
        if " or " in question:
            own = sorted(offered & set(thing.attributes))
            return own[0] if len(own) == 1 else None
        truths = [self._has(thing, word) for word in offered]
        if len(truths) != 1 or truths[0] is None:
            return None
        return "yes" if truths[0] else "no"

    def verify(self, call: Call) -> bool | None:
        """VERIFY: whether the thing has the property; False only where it has another of that kind."""
        thing = self._named(call.args["image"], str(call.args["object"]))
        return None if thing is None else self._has(thing, str(call.args["property"]))

    def _named(self, image: FileImage, text: str) -> SceneObject | None:
        """The thing nearest to the centre that ``text`` names, by the longest name."""
        named = [thing for thing, _ in self.visible_objects(image) if _holds(text, thing.name)]
        return max(named, key=lambda thing: len(thing.name), default=None)

    def _has(self, thing: SceneObject, word: str) -> bool | None:
        if word in thing.attributes:
            return True
        rivals = {other for words in self.kinds.values() if word in words for other in words}
        return False if rivals & set(thing.attributes) else None


def _holds(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def _is(thing: SceneObject, phrase: str) -> bool:
    """Whether ``phrase`` is the thing's name, after properties that it has."""
    if not f" {phrase}".endswith(f" {thing.name}"):
        return False
    rest = f" {phrase[: len(phrase) - len(thing.name)]}"
    for word in sorted(thing.attributes, key=len, reverse=True):
        rest = rest.replace(f" {word} ", " ")
    return not rest.strip()


def graph_teacher(module: VisualModule, graphs: SceneGraphs) -> ModuleTeacher:
    """The scene graphs as a teacher of LOC, VQA or VERIFY, in the words that ``module`` knows.

    Raises:
        InputError: another module.
    """
    answers: Mapping[str, Callable[[Call], object]] = {"LOC": graphs.locate, "VQA": graphs.ask, "VERIFY": graphs.verify}
    if module.name not in answers:
        remedy = did_you_mean(module.name, list(answers))
        raise InputError(f"scene graphs cannot teach {module.name}", where="--teacher", remedy=remedy)
    answer = answers[module.name]

    def label(calls: Sequence[Call]) -> list[CallLabel | None]:
        own_answers = [answer(call) for call in calls]
        return [
            None if a is None or not _in_vocabulary(module, c, a) else CallLabel(a) for c, a in zip(calls, own_answers, strict=True)
        ]

    def covers(call: Call) -> bool:
        image = call.args["image"]
        return isinstance(image, FileImage) and image.path.stem in graphs.graphs

    version = fingerprint("scene graphs", graphs.kinds, [graphs.graphs[name] for name in sorted(graphs.graphs)])
    return ModuleTeacher("scene graphs", version, covers, label)


def _in_vocabulary(module: VisualModule, call: Call, answer: object) -> bool:
    """Whether the module can give this answer to this call: an answer outside its words is no label."""
    if isinstance(module, Vqa):
        vocabulary = module.config.vocabulary
        return answer in {vocabulary.flat[i] for i in vocabulary.read(call.args["question"]).allowed}
    words = module.capabilities.vocabulary
    return not isinstance(answer, str) or words is None or answer in words
