"""The library of ViperGPT programs: image patches, video segments and the functions beside them.

Source: Surís et al., "ViperGPT: Visual Inference via Python Execution for Reasoning", ICCV 2023. Coordinates are pixels
of the image that the program was given, with their origin at the BOTTOM left. Nothing here touches pixels: an image is
a :class:`ImageRef`, and whatever must be seen is asked of a module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.values import NUMBERS, measure, name_of, sequence, show, text
from tutelage.programs.types import LimitExceeded, RuntimeFailure, TypeFailure

MARGIN = 10
FULL_SIZE = 375
"""A crop grows by 10 pixels where the image's shorter side is 375, a usual photo's, and in proportion where it is
smaller (the proportion is ours)."""


class View(NamedTuple):
    """A region of image number ``root``: x1, y1, x2, y2 from the top left; ``width`` and ``height`` are the root's."""

    root: int
    x1: int
    y1: int
    x2: int
    y2: int
    width: int
    height: int


class Found(NamedTuple):
    """A box that a module found, in pixels from the top left of the image it was asked about."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float = 1.0


class Request(NamedTuple):
    """A question to a module, as the interpreter asks it: images are views. ``number``: of the run's questions, from 0."""

    module: str
    args: dict[str, Any]
    number: int


Asking = Generator[Request, Any, Any]
"""A library function that asks, one question at a time."""

Asked = Request | list[Request]
"""What a program asks: a question, or several that are answered together."""


class Patch:
    """ImagePatch: a region of an image. ``box`` is what was found, without the margin that the region has around it."""

    __slots__ = ("view", "box")

    def __init__(self, view: View, box: Found | None = None):
        self.view = view
        self.box = box or Found(view.x1, view.y1, view.x2, view.y2)

    def __repr__(self) -> str:
        return f"ImagePatch({self.left}, {self.lower}, {self.right}, {self.upper})"

    @property
    def left(self) -> int:
        """Pixels from the left edge of the image."""
        return self.view.x1

    @property
    def right(self) -> int:
        """Pixels from the left edge of the image."""
        return self.view.x2

    @property
    def lower(self) -> int:
        """Pixels from the bottom edge of the image."""
        return self.view.height - self.view.y2

    @property
    def upper(self) -> int:
        """Pixels from the bottom edge of the image."""
        return self.view.height - self.view.y1


class Segment:
    """VideoSegment: frames ``start`` to ``end`` (without it) of a video."""

    __slots__ = ("frames", "start", "end")

    def __init__(self, frames: tuple[View, ...], start: int, end: int):
        self.frames, self.start, self.end = frames, start, end

    def __repr__(self) -> str:
        return f"VideoSegment({self.start}, {self.end})"


class Video:
    """A video as the program is given it: its frames in order."""

    __slots__ = ("frames",)

    def __init__(self, frames: tuple[View, ...]):
        self.frames = frames


def ask(meter: Meter, module: str, **args: Any) -> Asking:
    """Put one question to a module.

    Raises:
        LimitExceeded: too many questions, or one too long.
    """
    meter.asked()
    length = 0
    for value in args.values():
        if type(value) is not View:
            length += measure(meter, value)
    if length > meter.length:
        raise LimitExceeded(f"a question longer than {meter.length:,}")
    meter.pause()
    answer = yield Request(module, args, meter.calls - 1)
    meter.resume()
    return answer


def _words(value: Any, what: str) -> str:
    if type(value) is not str:
        raise TypeFailure(f"{what} is a text, not {name_of(value)}")
    return value


def _number(value: Any) -> float:
    if type(value) not in NUMBERS or not math.isfinite(value):
        raise TypeFailure(f"a coordinate is a number, not {name_of(value)}")
    return float(value)


def _patch(value: Any) -> Patch:
    if type(value) is not Patch:
        raise TypeFailure(f"an ImagePatch is needed, not {name_of(value)}")
    return value


def region(view: View, sides: Sequence[float], margin: int) -> View:
    """The part of ``view`` between left, lower, right and upper, counted from its own bottom left, grown by ``margin``.

    Raises:
        RuntimeFailure: nothing of it lies inside.
    """
    left, lower, right, upper = sides
    x1, x2 = max(view.x1, view.x1 + math.floor(left)), min(view.x2, view.x1 + math.ceil(right))
    y1, y2 = max(view.y1, view.y2 - math.ceil(upper)), min(view.y2, view.y2 - math.floor(lower))
    if x1 >= x2 or y1 >= y2:
        size = f"{view.x2 - view.x1}x{view.y2 - view.y1}"
        raise RuntimeFailure(f"a crop of zero area: ({left:g}, {lower:g}, {right:g}, {upper:g}) of {size}")
    x1, x2 = max(view.x1, x1 - margin), min(view.x2, x2 + margin)
    y1, y2 = max(view.y1, y1 - margin), min(view.y2, y2 + margin)
    return View(view.root, x1, y1, x2, y2, view.width, view.height)


def margin_of(view: View) -> int:
    """How many pixels a crop of this image grows by."""
    return min(MARGIN, math.ceil(MARGIN * min(view.width, view.height) / FULL_SIZE))


def cut(view: View, box: Found) -> Patch:
    """The patch round a box that was found in ``view``."""
    height = view.y2 - view.y1
    part = region(view, (box.x1, height - box.y2, box.x2, height - box.y1), margin_of(view))
    place = Found(view.x1 + box.x1, view.y1 + box.y1, view.x1 + box.x2, view.y1 + box.y2, box.score)
    return Patch(part, place)


def make_patch(meter: Meter, image: Any, left: Any = None, lower: Any = None, right: Any = None, upper: Any = None) -> Patch:
    """``ImagePatch(image, left, lower, right, upper)``; without coordinates, the whole image."""
    view = image.view if type(image) is Patch else image
    if type(view) is not View:
        raise TypeFailure(f"ImagePatch takes an image, not {name_of(image)}")
    meter.allocate(16)
    sides = (left, lower, right, upper)
    if sides == (None, None, None, None):
        return Patch(view)
    whole = (0, 0, view.x2 - view.x1, view.y2 - view.y1)
    return Patch(region(view, [_number(end if side is None else side) for side, end in zip(sides, whole)], margin=0))


def crop(meter: Meter, patch: Patch, left: Any, lower: Any, right: Any, upper: Any) -> Patch:
    """A part of the patch, from coordinates counted from the patch's own bottom left."""
    meter.allocate(16)
    return Patch(region(patch.view, list(map(_number, (left, lower, right, upper))), margin_of(patch.view)))


def overlaps_with(meter: Meter, patch: Patch, left: Any, lower: Any, right: Any, upper: Any) -> bool:
    """Whether the patch and a box in the same coordinates as its fields share a point."""
    left, lower, right, upper = map(_number, (left, lower, right, upper))
    return patch.left <= right and patch.right >= left and patch.lower <= upper and patch.upper >= lower


def find(meter: Meter, patch: Patch, object_name: Any) -> Asking:
    """The patches that LOC finds, best first."""
    boxes = yield from ask(meter, "LOC", image=patch.view, object=_words(object_name, "object_name"))
    meter.allocate(16 * len(boxes))
    return [cut(patch.view, box) for box in boxes]


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in set("aeiou") else "a"


def exists(by_question: bool) -> Callable[..., Asking]:
    """``exists``: find, then a yes/no check on each patch, by VQA where it is registered, else by VERIFY."""

    def exists(meter: Meter, patch: Patch, object_name: Any) -> Asking:
        noun = _words(object_name, "object_name")
        for found in (yield from find(meter, patch, noun)):
            if by_question:
                question = f"Is this {_article(noun)} {noun}?"
                answer = yield from ask(meter, "VQA", image=found.view, question=question)
            else:
                answer = yield from ask(meter, "VERIFY", image=found.view, object=noun, property=noun)
            if answer is True or (type(answer) is str and "yes" in answer.lower()):
                return True
        return False

    return exists


def verify_property(meter: Meter, patch: Patch, object_name: Any, property: Any) -> Asking:
    """Whether VERIFY sees the property in the patch."""
    noun, what = _words(object_name, "object_name"), _words(property, "property")
    answer = yield from ask(meter, "VERIFY", image=patch.view, object=noun, property=what)
    return answer if type(answer) is bool else "yes" in str(answer).lower()


def best_text_match(meter: Meter, patch: Patch, option_list: Any, prefix: Any = None) -> Asking:
    """The option that MATCH finds most like the patch; ``prefix`` stands before each."""
    options = [_words(option, "an option") for option in sequence(meter, option_list)]
    if not options:
        raise RuntimeFailure("best_text_match of no option")
    shown = options if prefix is None else [text(meter, f"{_words(prefix, 'prefix')} {option}") for option in options]
    answer = yield from ask(meter, "MATCH", image=patch.view, options=shown)
    if answer not in shown:
        raise RuntimeFailure(f"MATCH gave {show(meter, answer)[:40]!r}, which is none of the options")
    return options[shown.index(answer)]


def simple_query(meter: Meter, patch: Patch, question: Any = None) -> Asking:
    """What VQA answers about the patch."""
    asked = "What is this?" if question is None else _words(question, "question")
    return ask(meter, "VQA", image=patch.view, question=asked)


def compute_depth(meter: Meter, patch: Patch) -> Asking:
    """The median depth of the patch, as the module DEPTH tells it."""
    return ask(meter, "DEPTH", image=patch.view)


def llm_query(meter: Meter, question: Any, context: Any = None, long_answer: Any = True) -> Asking:
    """What the language module answers; ``context`` goes before the question (ours)."""
    words = _words(question, "question")
    if context is not None:
        words = text(meter, f"{_words(context, 'context')}\n{words}")
    return ask(meter, "LLM", question=words, long_answer=bool(long_answer))


def patch_llm_query(meter: Meter, patch: Patch, question: Any, long_answer: Any = True) -> Asking:
    """``llm_query`` as a method of a patch."""
    return llm_query(meter, question, None, long_answer)


def best_image_match(meter: Meter, list_patches: Any, content: Any, return_index: Any = False) -> Asking:
    """The patch that the module SCORE finds most like the contents, on average; None of no patch."""
    patches = [_patch(value) for value in sequence(meter, list_patches)]
    contents = [content] if type(content) is str else [_words(value, "content") for value in sequence(meter, content)]
    if not patches:
        return None
    if not contents:
        raise RuntimeFailure("best_image_match of no content")
    totals = []
    for patch in patches:
        total = 0.0
        for words in contents:
            total += yield from ask(meter, "SCORE", image=patch.view, content=words)
        totals.append(total)
    best = totals.index(max(totals))
    return best if return_index else patches[best]


def distance(meter: Meter, a: Any, b: Any) -> float:
    """Between the nearest edges of two patches; minus their intersection over union where they overlap or touch."""
    if type(a) in NUMBERS and type(b) in NUMBERS:
        return abs(a - b)
    one, two = _patch(a), _patch(b)
    across = max(0, one.left - two.right, two.left - one.right)
    up = max(0, one.lower - two.upper, two.lower - one.upper)
    if across or up:
        return math.hypot(across, up)
    width = min(one.right, two.right) - max(one.left, two.left)
    height = min(one.upper, two.upper) - max(one.lower, two.lower)
    areas = [(p.right - p.left) * (p.upper - p.lower) for p in (one, two)]
    return -(width * height) / (sum(areas) - width * height)


def bool_to_yesno(meter: Meter, value: Any) -> str:
    """ "yes" or "no"; a text that says so already stays."""
    if type(value) is str and value.lower() in ("yes", "no"):
        return value.lower()
    return "yes" if value else "no"


_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS = {word: number for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}


def coerce_to_numeric(meter: Meter, string: Any) -> float:
    """The first number in a text ("10-15" gives 10), number words up to twelve included (ours).

    Raises:
        RuntimeFailure: there is none.
    """
    if type(string) in NUMBERS:
        return string
    words = _words(string, "string")
    meter.work(len(words))
    found = _NUMBER.search(words[:1000].replace(",", ""))
    if found is not None:
        return float(found[0])
    for word in words[:1000].lower().split():
        if word.strip(".!?") in _WORDS:
            return _WORDS[word.strip(".!?")]
    raise RuntimeFailure(f"no number in {words[:40]!r}")


def make_segment(meter: Meter, video: Any, start: Any = None, end: Any = None) -> Segment:
    """``VideoSegment(video, start, end)``.

    Raises:
        RuntimeFailure: no frame lies between.
    """
    if type(video) not in (Video, Segment):
        raise TypeFailure(f"VideoSegment takes a video, not {name_of(video)}")
    whole = video if type(video) is Segment else Segment(video.frames, 0, len(video.frames))
    return trim(meter, whole, start, end)


def trim(meter: Meter, segment: Segment, start: Any = None, end: Any = None) -> Segment:
    """Frames ``start`` to ``end`` (without it) of the segment, counted from its own first; None: its own bounds."""
    count = segment.end - segment.start
    first, last = (default if value is None else int(_number(value)) for value, default in ((start, 0), (end, count)))
    first, last = max(0, first), min(count, last)
    if first >= last:
        raise RuntimeFailure(f"a video segment without a frame: {first} to {last} of {count}")
    meter.allocate(16)
    return Segment(segment.frames, segment.start + first, segment.start + last)


def frame_from_index(meter: Meter, segment: Segment, index: Any) -> Patch:
    """Frame ``index`` of the segment; negative ones count from its end.

    Raises:
        RuntimeFailure: there is no such frame.
    """
    count, at = segment.end - segment.start, int(_number(index))
    if not -count <= at < count:
        raise RuntimeFailure(f"no frame {at} in a segment of {count}")
    meter.allocate(16)
    return Patch(segment.frames[segment.start + at % count])


def frame_iterator(meter: Meter, segment: Segment) -> list[Patch]:
    """Every frame of the segment, in order."""
    return [frame_from_index(meter, segment, at) for at in range(segment.end - segment.start)]
