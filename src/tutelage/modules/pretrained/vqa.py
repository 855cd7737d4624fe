"""VQA, VERIFY and MATCH on photographs, as far as a detector, a classifier and counted pixels can answer honestly.

What they cannot answer they refuse, call by call, and say what would: no packaged network answers free questions. A word
that only ConSE could judge (``sight.py``: uncalibrated) is answered without a probability, and the call is marked as out of
vocabulary, in the trace too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tutelage.assets import AssetAbsent
from tutelage.errors import MissingExtra
from tutelage.modules.pretrained.coco_classes import CLASSES, GROUPS
from tutelage.modules.pretrained.color_naming import COLORS, color_shares
from tutelage.modules.pretrained.ocr import Ocr
from tutelage.modules.pretrained.perception import SURE, Sight
from tutelage.programs.types import Answers, Call, ProgramFailure, RuntimeFailure, Signature
from tutelage.programs.values import Image
from tutelage.programs.generators.grammar import singular

ENOUGH = 0.2
"""The share of pixels near the middle that lets a thing be called by a colour (ours)."""
FITS = 0.45
"""The cosine at which ConSE lets a phrase fit (ours, uncalibrated)."""


class Asked(NamedTuple):
    """One call, read: its image, and the words in it that matter."""

    image: Image
    words: tuple[str, ...] = ()


class Said(NamedTuple):
    """One answer: the value, probabilities where there are any, and whether it was only guessed at (ConSE)."""

    value: Any
    dist: dict[str, float] | None = None
    guessed: bool = False


Skill = Callable[[Any, Sequence[Asked]], list[Said]]
"""Answers calls of one kind as one batch; its first argument is the module."""


class Answering:
    """A module that reads each call (:meth:`read`), and has calls of one skill answered together."""

    name: str
    signature: Signature
    symbolic, batch_size = False, 32

    def __init__(self, sight: Sight):
        self.sight = sight

    @property
    def version(self) -> str:
        """That of the networks."""
        return f"packaged-{self.sight.version}"

    def read(self, call: Call) -> tuple[Skill, Asked]:
        """The skill that answers a call, and the call as that needs it.

        Raises:
            ProgramFailure: none does.
        """
        raise NotImplementedError

    def run(self, calls: Sequence[Call]) -> Answers:
        """Answer ``calls``; one that cannot be read, or that needs an extra or an asset that is not here, fails alone."""
        said = [Said(None)] * len(calls)
        groups: dict[Skill, list[tuple[int, Asked]]] = {}
        for number, call in enumerate(calls):
            try:
                skill, asked = self.read(call)
                groups.setdefault(skill, []).append((number, asked))
            except ProgramFailure as failure:
                said[number] = Said(failure.with_traceback(None))
        for skill, group in groups.items():
            try:
                answers = skill(self, [asked for _, asked in group])
            except (MissingExtra, AssetAbsent) as error:
                answers = [Said(RuntimeFailure(error.message, where=error.where or self.name, remedy=error.remedy))] * len(group)
            for (number, _), answer in zip(group, answers, strict=True):
                said[number] = answer
        return Answers([it.value for it in said], [it.dist for it in said], [it.guessed for it in said])

    def refusal(self, what: str) -> RuntimeFailure:
        """A call that is not answered, and what would answer it."""
        return RuntimeFailure(
            f"the packaged networks cannot answer {what}",
            where=self.name,
            remedy="this question needs a VQA model: extra hf, --module DIR; docs/photos.md says what is answered",
        )

    def present(self, asked: Sequence[Asked], yes: Any, no: Any) -> list[Said]:
        """``yes`` or ``no`` as the thing is in the image. A word that only a wider class covers is marked, and so is one that
        no network knows, which is left to ConSE."""
        images, things = [it.image for it in asked], [it.words[0] for it in asked]
        said = []
        for image, thing, found in zip(images, things, self.sight.presence(images, things), strict=True):
            if found is None:
                fits = float(self.sight.fit([image], [thing])[0, 0]) >= FITS
                said.append(Said(yes if fits else no, guessed=True))
            else:
                said.append(Said(yes if found.enough else no, {"yes": found.share, "no": 1 - found.share}, not found.exact))
        return said


class Vqa(Answering):
    """VQA(image, question) -> text: what it is, its colour, what is written, whether a thing is there; else a refusal."""

    name = "VQA"
    signature = Signature({"image": "image", "question": "text"}, "text")

    def __init__(self, sight: Sight, ocr: Ocr):
        super().__init__(sight)
        self.ocr = ocr

    @property
    def version(self) -> str:
        """That of the networks, the reader's too."""
        return f"{super().version}-{self.ocr.version}"

    def read(self, call: Call) -> tuple[Skill, Asked]:
        """The first form that reads the question."""
        question = " ".join(call.args["question"].lower().replace("colour", "color").split()).rstrip("?. ")
        for pattern, skill in FORMS:
            found = pattern.fullmatch(question)
            if found is not None:
                return skill, Asked(call.args["image"], found.groups())
        raise self.refusal(repr(call.args["question"]))

    def color(self, asked: Sequence[Asked]) -> list[Said]:
        """The colour of most pixels near the middle."""
        shares = [color_shares(it.image) for it in asked]
        return [Said(max(share, key=share.__getitem__)) for share in shares]

    def text(self, asked: Sequence[Asked]) -> list[Said]:
        """What is written."""
        return [Said(value) for value in self.ocr.run([Call("OCR", {"image": it.image}) for it in asked]).values]

    def choice(self, asked: Sequence[Asked]) -> list[Said]:
        """One of two words: of colours the one of more pixels; of things the likelier by ConSE."""
        said = []
        for image, options in asked:
            if set(options) <= set(COLORS):
                shares = color_shares(image)
                said.append(Said(max(options, key=shares.__getitem__)))
            else:
                said.append(Said(self.sight.best([image], options)[0], guessed=True))
        return said

    def there(self, asked: Sequence[Asked]) -> list[Said]:
        """Whether a thing is there, yes or no."""
        return self.present(asked, "yes", "no")

    def kind(self, asked: Sequence[Asked]) -> list[Said]:
        """What it is: of a group that COCO has (animals, vehicles …) the class that is seen best; else as :meth:`what`."""
        said = self.what(asked)
        for number, (it, scores) in enumerate(zip(asked, self.sight.scores([it.image for it in asked]))):
            group = GROUPS.get(singular(it.words[0]), ())
            best = max(group, key=lambda name: float(scores[CLASSES.index(name)]), default=None)
            if best is not None and float(scores[CLASSES.index(best)]) >= self.sight.detector.config.threshold:
                said[number] = Said(best)
            elif group:
                said[number] = Said(
                    RuntimeFailure(f"no {it.words[0]} is seen", where=self.name, remedy="ask what is in the picture")
                )
        return said

    def what(self, asked: Sequence[Asked]) -> list[Said]:
        """The classifier's name for the picture where it is sure; else what the detector sees, best first; else that name."""
        images, said = [it.image for it in asked], []
        for classes, scores in zip(self.sight.classes(images), self.sight.scores(images), strict=True):
            sure, name = float(classes.max()), self.sight.classifier.config.answers[int(classes.argmax())]
            seen = [i for i in scores.argsort(descending=True).tolist() if scores[i] >= self.sight.detector.config.threshold]
            if sure >= SURE or not seen:
                said.append(Said(name, {name: sure}))
            else:
                text = ", ".join(CLASSES[i] for i in seen)
                said.append(Said(text, {text: float(scores[seen].prod())}))
        return said


_PICTURE = r"(?:this|the) (?:image|picture|photo|photograph|scene)"
_NOUN = r"(?:(?:the|this|that) )?[a-z-]+(?: [a-z-]+)?"
_IN = rf"(?: (?:in|on|of) {_PICTURE})?"
_FORMS: tuple[tuple[str, Skill], ...] = (
    (rf"what color (?:is|are) {_NOUN}|what is the color of {_NOUN}", Vqa.color),
    (r"what (?:does|do) .+ say|what is written.*|what (?:number|text|title) is .+", Vqa.text),
    (r"(?:read|what is) the (?:text|writing).*", Vqa.text),
    (rf"is (?:this|it|the [a-z ]+?) (?:an? )?([a-z-]+) or (?:an? )?([a-z-]+){_IN}", Vqa.choice),
    (rf"(?:is (?:this|it)|is there|do you see|can you see) an? ([a-z -]+?){_IN}", Vqa.there),
    (rf"(?:what|which) (?:kind of |type of |sort of )?([a-z]+) is (?:this|it|that|shown|seen|there){_IN}", Vqa.kind),
    (rf"(?:what|which) (?:kind of |type of |sort of )?([a-z]+) is (?:in|on) {_PICTURE}", Vqa.kind),
    (rf"what (?:is|are) (?:this|it|that|these|there|shown|here){_IN}", Vqa.what),
    (rf"what (?:is|are) in {_PICTURE}|what (?:do|can) you see{_IN}|what does {_PICTURE} show", Vqa.what),
)
FORMS = tuple((re.compile(pattern), skill) for pattern, skill in _FORMS)
"""The questions that VQA reads, in small letters without the question mark; the first that fits is used."""


class Verify(Answering):
    """VERIFY(image, object, property) -> bool: a colour by its pixels, a thing by the networks; else a refusal."""

    name = "VERIFY"
    signature = Signature({"image": "image", "object": "text", "property": "text"}, "bool")

    def read(self, call: Call) -> tuple[Skill, Asked]:
        """By colour, or by presence where the property is the name of a thing."""
        image, noun, word = call.args["image"], call.args["object"], call.args["property"].lower()
        if word in COLORS:
            return Verify.colored, Asked(image, (word,))
        if word == noun.lower() or self.sight.knows(word):
            return Verify.there, Asked(image, (word,))
        raise self.refusal(f"whether the {noun} is {word!r}")

    def colored(self, asked: Sequence[Asked]) -> list[Said]:
        """Whether enough pixels near the middle have the colour."""
        return [Said(color_shares(image)[color] >= ENOUGH) for image, (color,) in asked]

    def there(self, asked: Sequence[Asked]) -> list[Said]:
        """Whether a thing is there."""
        return self.present(asked, True, False)


class Match(Answering):
    """MATCH(image, options) -> the option that fits best, by ConSE: uncalibrated, so without probabilities."""

    name = "MATCH"
    signature = Signature({"image": "image", "options": "any"}, "text")

    @property
    def version(self) -> str:
        """Says that nothing has calibrated it, and so does every step of a trace."""
        return f"conse-uncalibrated-{self.sight.version}"

    def read(self, call: Call) -> tuple[Skill, Asked]:
        """Any options will do."""
        options = call.args["options"]
        if not isinstance(options, (list, tuple)) or not options:
            raise RuntimeFailure("MATCH of no options", where=self.name, remedy="give a list to choose from")
        return Match.best, Asked(call.args["image"], tuple(map(str, options)))

    def best(self, asked: Sequence[Asked]) -> list[Said]:
        """The best option of each image; images with the same options as one batch."""
        said = [Said(None)] * len(asked)
        for options in dict.fromkeys(it.words for it in asked):
            numbers = [number for number, it in enumerate(asked) if it.words == options]
            for number, best in zip(numbers, self.sight.best([asked[number].image for number in numbers], options)):
                said[number] = Said(best)
        return said
