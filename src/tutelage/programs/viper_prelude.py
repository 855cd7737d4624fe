"""The library of ViperGPT programs. This file runs inside the sandbox, before the programs do.

Source: Surís et al., "ViperGPT: Visual Inference via Python Execution for Reasoning", ICCV 2023. It is plain Python in the
subset that the sandbox has: no decorators on methods, no inheritance. Coordinates are pixels of the image that the program
was given, with their origin at the BOTTOM left. Nothing here touches pixels: an image is a region of a numbered picture,
and whatever must be seen is a call of a module on the host.

Names without an underscore are what programs see. Their signatures and the first lines of their docstrings are also the
description that language models are shown, see :mod:`tutelage.programs.viper_api`.
"""

import math
import re

MARGIN = 10
FULL_SIZE = 375
"""A crop grows by 10 pixels where the image's shorter side is 375, a usual photo's, and in proportion where it is smaller
(the proportion is our choice)."""


def call_modules(calls, make=None):
    """The outputs of several module calls ``(name, arguments)`` that do not need one another. The driver replaces this.

    ``make`` is applied to the list of them; what it makes is kept for the program's next runs, and must not be changed.
    """
    raise NotImplementedError


def has_module(name):
    """Whether a module of this name is registered. The driver replaces this."""
    return True


def call_module(name, arguments):
    """The output of one module call."""
    return call_modules([(name, arguments)])[0]


class Image:
    """A region of picture number ``_root``: ``_region`` is x1, y1, x2, y2 from the top left of a picture of ``_size``."""

    def __init__(self, root, region, size):
        self._root = root
        self._region = region
        self._size = size
        self.width = region[2] - region[0]
        self.height = region[3] - region[1]
        self.size = (self.width, self.height)
        self.shape = (3, self.height, self.width)

    def __repr__(self):
        return f"Image({self.width}x{self.height})"


class ImagePatch:
    """A part of an image. ImagePatch(image) is the whole of it."""

    def __init__(self, image, left=None, lower=None, right=None, upper=None):
        if not isinstance(image, Image):
            if isinstance(image, VideoSegment) and isinstance(left, int) and lower is None:
                image, left = image.frame_from_index(left), None
            if not isinstance(image, ImagePatch):
                raise TypeError(f"ImagePatch takes an image, not {_kind(image)}")
            image = image.cropped_image
        if left is not None or lower is not None or right is not None or upper is not None:
            sides = [left, lower, right, upper]
            whole = [0, 0, image.width, image.height]
            image = _region(image, [_number(whole[i] if sides[i] is None else sides[i]) for i in range(4)], 0)
        x1, y1, x2, y2 = image._region
        end = image._size[1]
        self.cropped_image = image
        self.left = x1
        self.right = x2
        self.lower = end - y2
        self.upper = end - y1
        self.width = image.width
        self.height = image.height
        self.horizontal_center = (x1 + x2) / 2
        self.vertical_center = end - (y1 + y2) / 2
        self._box = None

    def __repr__(self):
        return f"ImagePatch({self.left}, {self.lower}, {self.right}, {self.upper})"

    def find(self, object_name):
        """-> list of patches: all things of that name, the surest first. Name a thing, not its properties."""
        if not has_module("LOC"):
            _unregistered("find", "LOC")
        image = self.cropped_image
        call = ("LOC", {"image": image, "object": _text(object_name, "object_name")})
        return list(call_modules([call], lambda outputs: _cut_all(image, outputs[0])))

    def exists(self, object_name):
        """-> bool: whether there is one."""
        noun = _text(object_name, "object_name")
        for found in self.find(noun):
            if has_module("VQA"):
                article = "an" if noun[:1].lower() in ("a", "e", "i", "o", "u") else "a"
                answer = call_module("VQA", {"image": found.cropped_image, "question": f"Is this {article} {noun}?"})
            else:
                answer = call_module("VERIFY", {"image": found.cropped_image, "object": noun, "property": noun})
            if answer is True or (isinstance(answer, str) and "yes" in answer.lower()):
                return True
        return False

    def simple_query(self, question=None):
        """-> text: a short answer to a question about this patch."""
        words = "What is this?" if question is None else _text(question, "question")
        return call_module("VQA", {"image": self.cropped_image, "question": words})

    def verify_property(self, object_name, property):
        """-> bool: whether the thing in this patch has the property."""
        noun, words = _text(object_name, "object_name"), _text(property, "property")
        answer = call_module("VERIFY", {"image": self.cropped_image, "object": noun, "property": words})
        return answer if isinstance(answer, bool) else "yes" in str(answer).lower()

    def best_text_match(self, option_list, prefix=None):
        """-> text: the option that fits this patch best."""
        options = [_text(option, "an option") for option in option_list]
        if not options:
            raise ValueError("best_text_match of no option")
        shown = options if prefix is None else [f"{_text(prefix, 'prefix')} {option}" for option in options]
        answer = call_module("MATCH", {"image": self.cropped_image, "options": shown})
        if answer not in shown:
            raise ValueError(f"MATCH gave {str(answer)[:40]!r}, which is none of the options")
        return options[shown.index(answer)]

    def compute_depth(self):
        """-> number: how far away it is; less is nearer."""
        return call_module("DEPTH", {"image": self.cropped_image})

    def llm_query(self, question, long_answer=True):
        """-> text: the answer to a question about the world."""
        return llm_query(question, None, long_answer)

    def crop(self, left, lower, right, upper):
        """-> patch: a part of this patch, in its own pixels."""
        sides = [_number(left), _number(lower), _number(right), _number(upper)]
        return ImagePatch(_region(self.cropped_image, sides, _margin(self.cropped_image)))

    def overlaps_with(self, left, lower=None, right=None, upper=None):
        """-> bool: whether the patch and these borders share a point."""
        if isinstance(left, ImagePatch) and lower is None:
            left, lower, right, upper = left.left, left.lower, left.right, left.upper
        left, lower, right, upper = _number(left), _number(lower), _number(right), _number(upper)
        return self.left <= right and self.right >= left and self.lower <= upper and self.upper >= lower


class VideoSegment:
    """Frames ``start`` to ``end`` (without it) of a video."""

    def __init__(self, video, start=None, end=None):
        if isinstance(video, VideoSegment):
            frames, first = video._frames, video.start
        elif isinstance(video, list) and all([isinstance(frame, Image) for frame in video]):
            frames, first = video, 0
        else:
            raise TypeError(f"VideoSegment takes a video, not {_kind(video)}")
        count = len(frames)
        low = 0 if start is None else max(0, int(_number(start)))
        high = count if end is None else min(count, int(_number(end)))
        if low >= high:
            raise ValueError(f"a video segment without a frame: {low} to {high} of {count}")
        self._frames = frames[low:high]
        self.start = first + low
        self.end = first + high
        self.num_frames = high - low

    def __repr__(self):
        return f"VideoSegment({self.start}, {self.end})"

    def frame_from_index(self, index):
        """-> patch: frame ``index`` of the segment; negative ones count from its end."""
        at = int(_number(index))
        if not -self.num_frames <= at < self.num_frames:
            raise IndexError(f"no frame {at} in a segment of {self.num_frames}")
        return ImagePatch(self._frames[at])

    def trim(self, start=None, end=None):
        """-> segment: frames ``start`` to ``end`` (without it) of the segment, counted from its own first."""
        return VideoSegment(self, start, end)

    def frame_iterator(self):
        """-> list of patches: every frame of the segment, in order."""
        return [ImagePatch(frame) for frame in self._frames]

    def select_answer(self, info, question, options):
        """-> text: the option that answers the question best, given what is known."""
        facts = "; ".join([f"{name}: {info[name]}" for name in info]) if isinstance(info, dict) else str(info)
        words = f"{_text(question, 'question')}\nKnown: {facts}\nOptions: {', '.join([str(option) for option in options])}"
        return _choose(llm_query(words, None, False), options)


def llm_query(question, context=None, long_answer=True):
    """-> text: the answer to a question about the world; the context goes before the question."""
    words = _text(question, "question")
    if context is not None:
        words = f"{_text(context, 'context')}\n{words}"
    return call_module("LLM", {"question": words, "long_answer": bool(long_answer)})


def process_guesses(question, guesses):
    """-> text: the best of several guesses at the answer to a question."""
    listed = [str(guess) for guess in guesses]
    words = f"{_text(question, 'question')}\nGuesses: {'; '.join(listed)}\nWhich is the best answer? A few words."
    return llm_query(words, None, False)


def best_image_match(list_patches, content, return_index=False):
    """-> patch: the one that fits the words best, or its index; None where there is no patch."""
    patches = [_patch(patch) for patch in list_patches]
    contents = [content] if isinstance(content, str) else [_text(words, "content") for words in content]
    if not patches:
        return None
    if not contents:
        raise ValueError("best_image_match of no content")
    calls = [("SCORE", {"image": patch.cropped_image, "content": words}) for patch in patches for words in contents]
    scores = call_modules(calls)
    totals = [sum(scores[at * len(contents) : (at + 1) * len(contents)]) for at in range(len(patches))]
    best = totals.index(max(totals))
    return best if return_index else patches[best]


def distance(a, b):
    """-> number: between the edges of two patches; below 0 where they overlap."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b)
    one, two = _patch(a), _patch(b)
    across = max(0, one.left - two.right, two.left - one.right)
    up = max(0, one.lower - two.upper, two.lower - one.upper)
    if across or up:
        return math.hypot(across, up)
    width = min(one.right, two.right) - max(one.left, two.left)
    height = min(one.upper, two.upper) - max(one.lower, two.lower)
    return -(width * height) / (one.width * one.height + two.width * two.height - width * height)


def bool_to_yesno(value):
    """-> text: "yes" or "no"."""
    if isinstance(value, str) and value.lower() in ("yes", "no"):
        return value.lower()
    return "yes" if value else "no"


_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def coerce_to_numeric(text):
    """-> number: the first number in a text."""
    if isinstance(text, (int, float)):
        return text
    words = _text(text, "text")[:1000]
    found = _NUMBER.search(words.replace(",", ""))
    if found is not None:
        return float(found.group(0))
    for word in words.lower().split():
        if word.strip(".!?") in _NUMBER_WORDS:
            return _NUMBER_WORDS.index(word.strip(".!?"))
    raise ValueError(f"no number in {words[:40]!r}")


# What follows is not for programs.


def _kind(value):
    return type(value).__name__


def _text(value, what):
    if not isinstance(value, str):
        raise TypeError(f"{what} is a text, not {_kind(value)}")
    return value


def _number(value):
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"a coordinate is a number, not {_kind(value)}")
    return float(value)


def _patch(value):
    if not isinstance(value, ImagePatch):
        raise TypeError(f"an ImagePatch is needed, not {_kind(value)}")
    return value


def _unregistered(name, module):
    """Ends the program: it needs a module that is not registered. The driver replaces this."""
    raise NotImplementedError(f"{name} needs the module {module}, which is not registered")


def _margin(image):
    """How many pixels a crop of this image grows by."""
    return min(MARGIN, math.ceil(MARGIN * min(image._size) / FULL_SIZE))


def _region(image, sides, margin):
    """The part of ``image`` between left, lower, right and upper, from its own bottom left, grown by ``margin``."""
    left, lower, right, upper = sides
    first, top, last, bottom = image._region
    x1, x2 = max(first, first + math.floor(left)), min(last, first + math.ceil(right))
    y1, y2 = max(top, bottom - math.ceil(upper)), min(bottom, bottom - math.floor(lower))
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"a crop of zero area: ({left:g}, {lower:g}, {right:g}, {upper:g}) of {image.width}x{image.height}")
    region = (max(first, x1 - margin), max(top, y1 - margin), min(last, x2 + margin), min(bottom, y2 + margin))
    return Image(image._root, region, image._size)


def _cut_all(image, boxes):
    """The patches round boxes ``("box", x1, y1, x2, y2, score)`` that were found in ``image``, from its top left."""
    margin = _margin(image)
    height = image.height
    first, top, _, _ = image._region
    patches = []
    for _, x1, y1, x2, y2, score in boxes:
        patch = ImagePatch(_region(image, (x1, height - y2, x2, height - y1), margin))
        patch._box = (first + x1, top + y1, first + x2, top + y2, score)
        patches.append(patch)
    return patches


def _box_of(patch):
    """Where a patch was found, without the margin round it."""
    return patch._box if patch._box is not None else (*patch.cropped_image._region, 1.0)


def _choose(answer, options):
    """The option that an answer names, or the answer itself."""
    text = str(answer).strip().lower()
    for option in options:
        if str(option).lower() == text:
            return option
    for option in options:
        if str(option).lower() in text:
            return option
    return answer


def _module_function(name, types, optional):
    """A registered module as a function: patches stand for their images, boxes come back as patches."""
    order = list(types)

    def call(*values, **named):
        given = dict(zip(order, values))
        if len(values) > len(order) or [arg for arg in named if arg in given or arg not in types]:
            raise TypeError(f"{name}() takes {', '.join(order)}")
        given.update(named)
        missing = [arg for arg in order if arg not in given and arg not in optional]
        if missing:
            raise TypeError(f"{name}() lacks {', '.join(missing)}")
        given = {arg: _argument(f"{name}({arg}=…)", types[arg], given[arg]) for arg in given}
        images = [given[arg] for arg in given if isinstance(given[arg], Image)]
        if images:
            given = {arg: _shifted(given[arg], -images[0]._region[0], -images[0]._region[1]) for arg in given}
        return _answered(call_module(name, given), images[0] if images else None)

    return call


def _argument(where, kind, value):
    """A program's value as the module takes it: an image, boxes, or a value of its own type."""
    if isinstance(value, ImagePatch):
        value = [("box", *_box_of(value))] if kind in ("boxes", "objects") else value.cropped_image
    elif isinstance(value, (list, tuple)):
        value = [_argument(where, "boxes" if kind == "boxes" else "any", part) for part in value]
        if kind == "boxes":
            value = [box for part in value for box in (part if isinstance(part, list) else [part])]
    fits = {"text": (str,), "number": (int, float), "bool": (bool,), "image": (Image,)}
    if kind in fits and not isinstance(value, fits[kind]):
        raise TypeError(f"{where} takes {kind}, not {_kind(value)}")
    return value


def _is_box(value):
    return isinstance(value, tuple) and len(value) == 6 and value[0] == "box"


def _shifted(value, across, down):
    """Boxes moved by so many pixels; everything else as it is."""
    if _is_box(value):
        return ("box", value[1] + across, value[2] + down, value[3] + across, value[4] + down, value[5])
    return [_shifted(part, across, down) for part in value] if isinstance(value, list) else value


def _answered(answer, image):
    """A module's output as programs hold it."""
    if _is_box(answer):
        return list(answer[1:5]) if image is None else _cut_all(image, [answer])[0]
    return [_answered(part, image) for part in answer] if isinstance(answer, list) else answer
