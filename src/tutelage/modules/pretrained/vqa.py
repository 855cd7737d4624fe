"""VQA, VERIFY and MATCH on photographs, as far as a detector, a classifier and counted pixels can answer honestly.

What they cannot answer they refuse, call by call, and say what would: no pretrained network answers free questions. A word
that only ConSE could judge (``perception.py``: uncalibrated) is answered without a probability, and the call is marked as out of
vocabulary, in the trace too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tutelage.assets import AssetNotFound
from tutelage.errors import MissingExtra
from tutelage.modules.pretrained.coco_classes import CLASSES, GROUPS
from tutelage.modules.pretrained.color_naming import COLORS, color_shares
from tutelage.modules.pretrained.ocr import Ocr
from tutelage.modules.pretrained.perception import MIN_PROBABILITY, PhotoPerception
from tutelage.programs.generators.grammar import singular
from tutelage.programs.types import Call, ModuleOutputs, ProgramFailure, RuntimeFailure, Signature
from tutelage.programs.values import Image

MIN_COLOR_SHARE = 0.2
"""The share of pixels near the middle that lets a thing be called by a colour (our choice)."""
MIN_COSINE = 0.45
"""The cosine at which ConSE lets a phrase fit (our choice, uncalibrated)."""


class ParsedCall(NamedTuple):
    """One call, read: its image, and the words in it that matter."""

    image: Image
    words: tuple[str, ...] = ()


class Prediction(NamedTuple):
    """One answer: the value, probabilities where there are any, and whether it was only guessed at (ConSE)."""

    value: Any
    probabilities: dict[str, float] | None = None
    guessed: bool = False


Skill = Callable[[Any, Sequence[ParsedCall]], list[Prediction]]
"""Answers calls of one kind as one batch; its first argument is the module."""


class RuleBasedModule:
    """A module that reads each call (:meth:`parse`), and has calls of one skill answered together."""

    name: str
    signature: Signature
    symbolic, batch_size = False, 32

    def __init__(self, perception: PhotoPerception):
        self.perception = perception

    @property
    def version(self) -> str:
        """That of the networks."""
        return f"packaged-{self.perception.version}"

    def parse(self, call: Call) -> tuple[Skill, ParsedCall]:
        """The skill that answers a call, and the call as that needs it.

        Raises:
            ProgramFailure: none does.
        """
        raise NotImplementedError

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Answer ``calls``; one that cannot be read, or that needs an extra or an asset that is not here, fails alone."""
        predictions = [Prediction(None)] * len(calls)
        groups: dict[Skill, list[tuple[int, ParsedCall]]] = {}
        for number, call in enumerate(calls):
            try:
                skill, parsed = self.parse(call)
                groups.setdefault(skill, []).append((number, parsed))
            except ProgramFailure as failure:
                predictions[number] = Prediction(failure.with_traceback(None))
        for skill, group in groups.items():
            try:
                answers = skill(self, [parsed for _, parsed in group])
            except (MissingExtra, AssetNotFound) as error:
                answers = [Prediction(RuntimeFailure(error.message, where=error.where or self.name, remedy=error.remedy))] * len(
                    group
                )
            for (number, _), answer in zip(group, answers, strict=True):
                predictions[number] = answer
        return ModuleOutputs(
            [it.value for it in predictions], [it.probabilities for it in predictions], [it.guessed for it in predictions]
        )

    def refusal(self, what: str) -> RuntimeFailure:
        """A call that is not answered, and what would answer it."""
        return RuntimeFailure(
            f"the pretrained networks cannot answer {what}",
            where=self.name,
            remedy="this question needs a VQA model: extra hf, --module DIR; docs/photos.md says what is answered",
        )

    def present(self, calls: Sequence[ParsedCall], yes: Any, no: Any) -> list[Prediction]:
        """``yes`` or ``no`` as the thing is in the image. A word that only a wider class covers is marked, and so is one that
        no network knows, which is left to ConSE."""
        images, things = [it.image for it in calls], [it.words[0] for it in calls]
        predictions = []
        for image, thing, found in zip(images, things, self.perception.presence(images, things), strict=True):
            if found is None:
                fits = float(self.perception.conse_similarity([image], [thing])[0, 0]) >= MIN_COSINE
                predictions.append(Prediction(yes if fits else no, guessed=True))
            else:
                predictions.append(
                    Prediction(yes if found.enough else no, {"yes": found.share, "no": 1 - found.share}, not found.exact)
                )
        return predictions


class PhotoVqa(RuleBasedModule):
    """VQA(image, question) -> text: what it is, its colour, what is written, whether a thing is there; else a refusal."""

    name = "VQA"
    signature = Signature({"image": "image", "question": "text"}, "text")

    def __init__(self, perception: PhotoPerception, ocr: Ocr):
        super().__init__(perception)
        self.ocr = ocr

    @property
    def version(self) -> str:
        """That of the networks, the reader's too."""
        return f"{super().version}-{self.ocr.version}"

    def parse(self, call: Call) -> tuple[Skill, ParsedCall]:
        """The first form that reads the question."""
        question = " ".join(call.args["question"].lower().replace("colour", "color").split()).rstrip("?. ")
        for pattern, skill in FORMS:
            found = pattern.fullmatch(question)
            if found is not None:
                return skill, ParsedCall(call.args["image"], found.groups())
        raise self.refusal(repr(call.args["question"]))

    def color(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """The colour of most pixels near the middle."""
        shares = [color_shares(it.image) for it in calls]
        return [Prediction(max(share, key=share.__getitem__)) for share in shares]

    def text(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """What is written."""
        return [Prediction(value) for value in self.ocr.run([Call("OCR", {"image": it.image}) for it in calls]).values]

    def choice(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """One of two words: of colours the one of more pixels; of things the likelier by ConSE."""
        predictions = []
        for image, options in calls:
            if set(options) <= set(COLORS):
                shares = color_shares(image)
                predictions.append(Prediction(max(options, key=shares.__getitem__)))
            else:
                predictions.append(Prediction(self.perception.best_match([image], options)[0], guessed=True))
        return predictions

    def there(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """Whether a thing is there, yes or no."""
        return self.present(calls, "yes", "no")

    def kind(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """What it is: of a group that COCO has (animals, vehicles …) the class that is seen best; else as :meth:`what`."""
        predictions = self.what(calls)
        for number, (it, scores) in enumerate(zip(calls, self.perception.scores([it.image for it in calls]))):
            group = GROUPS.get(singular(it.words[0]), ())
            best = max(group, key=lambda name: float(scores[CLASSES.index(name)]), default=None)
            if best is not None and float(scores[CLASSES.index(best)]) >= self.perception.detector.config.threshold:
                predictions[number] = Prediction(best)
            elif group:
                predictions[number] = Prediction(
                    RuntimeFailure(f"no {it.words[0]} is seen", where=self.name, remedy="ask what is in the picture")
                )
        return predictions

    def what(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """The classifier's name for the picture where it is sure; else what the detector sees, best first; else that name."""
        images, predictions = [it.image for it in calls], []
        for classes, scores in zip(self.perception.classes(images), self.perception.scores(images), strict=True):
            sure, name = float(classes.max()), self.perception.classifier.config.answers[int(classes.argmax())]
            seen = [i for i in scores.argsort(descending=True).tolist() if scores[i] >= self.perception.detector.config.threshold]
            if sure >= MIN_PROBABILITY or not seen:
                predictions.append(Prediction(name, {name: sure}))
            else:
                text = ", ".join(CLASSES[i] for i in seen)
                predictions.append(Prediction(text, {text: float(scores[seen].prod())}))
        return predictions


_PICTURE = r"(?:this|the) (?:image|picture|photo|photograph|scene)"
_NOUN = r"(?:(?:the|this|that) )?[a-z-]+(?: [a-z-]+)?"
_IN = rf"(?: (?:in|on|of) {_PICTURE})?"
_FORMS: tuple[tuple[str, Skill], ...] = (
    (rf"what color (?:is|are) {_NOUN}|what is the color of {_NOUN}", PhotoVqa.color),
    (r"what (?:does|do) .+ say|what is written.*|what (?:number|text|title) is .+", PhotoVqa.text),
    (r"(?:read|what is) the (?:text|writing).*", PhotoVqa.text),
    (rf"is (?:this|it|the [a-z ]+?) (?:an? )?([a-z-]+) or (?:an? )?([a-z-]+){_IN}", PhotoVqa.choice),
    (rf"(?:is (?:this|it)|is there|do you see|can you see) an? ([a-z -]+?){_IN}", PhotoVqa.there),
    (rf"(?:what|which) (?:kind of |type of |sort of )?([a-z]+) is (?:this|it|that|shown|seen|there){_IN}", PhotoVqa.kind),
    (rf"(?:what|which) (?:kind of |type of |sort of )?([a-z]+) is (?:in|on) {_PICTURE}", PhotoVqa.kind),
    (rf"what (?:is|are) (?:this|it|that|these|there|shown|here){_IN}", PhotoVqa.what),
    (rf"what (?:is|are) in {_PICTURE}|what (?:do|can) you see{_IN}|what does {_PICTURE} show", PhotoVqa.what),
)
FORMS = tuple((re.compile(pattern), skill) for pattern, skill in _FORMS)
"""The questions that VQA reads, in small letters without the question mark; the first that fits is used."""


class PhotoVerify(RuleBasedModule):
    """VERIFY(image, object, property) -> bool: a colour by its pixels, a thing by the networks; else a refusal."""

    name = "VERIFY"
    signature = Signature({"image": "image", "object": "text", "property": "text"}, "bool")

    def parse(self, call: Call) -> tuple[Skill, ParsedCall]:
        """By colour, or by presence where the property is the name of a thing."""
        image, noun, word = call.args["image"], call.args["object"], call.args["property"].lower()
        if word in COLORS:
            return PhotoVerify.colored, ParsedCall(image, (word,))
        if word == noun.lower() or self.perception.in_vocabulary(word):
            return PhotoVerify.there, ParsedCall(image, (word,))
        raise self.refusal(f"whether the {noun} is {word!r}")

    def colored(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """Whether enough pixels near the middle have the colour."""
        return [Prediction(color_shares(image)[color] >= MIN_COLOR_SHARE) for image, (color,) in calls]

    def there(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """Whether a thing is there."""
        return self.present(calls, True, False)


class PhotoMatch(RuleBasedModule):
    """MATCH(image, options) -> the option that fits best, by ConSE: uncalibrated, so without probabilities."""

    name = "MATCH"
    signature = Signature({"image": "image", "options": "any"}, "text")

    @property
    def version(self) -> str:
        """Says that nothing has calibrated it, and so does every step of a trace."""
        return f"conse-uncalibrated-{self.perception.version}"

    def parse(self, call: Call) -> tuple[Skill, ParsedCall]:
        """Any options will do."""
        options = call.args["options"]
        if not isinstance(options, (list, tuple)) or not options:
            raise RuntimeFailure("MATCH of no options", where=self.name, remedy="give a list to choose from")
        return PhotoMatch.best_match, ParsedCall(call.args["image"], tuple(map(str, options)))

    def best_match(self, calls: Sequence[ParsedCall]) -> list[Prediction]:
        """The best option of each image; images with the same options as one batch."""
        predictions = [Prediction(None)] * len(calls)
        for options in dict.fromkeys(it.words for it in calls):
            numbers = [number for number, it in enumerate(calls) if it.words == options]
            for number, best in zip(numbers, self.perception.best_match([calls[number].image for number in numbers], options)):
                predictions[number] = Prediction(best)
        return predictions
