"""VisProg's editing and tagging modules, as they work without a generative model or a large matcher (our choice).

Selection knows categories, colours, places and sizes; REPLACE fills with a colour or a texture; EMOJI draws a face.
Better ones take their place under the same name: a module is an entry of a dictionary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw
import PIL.ImageFilter

from tutelage.modules.connected_components import segment
from tutelage.modules.function_module import FunctionModule, module
from tutelage.programs.types import LimitExceeded, RuntimeFailure
from tutelage.programs.values import Image, Object

MAX_WORDS = 100
"""Words of a query that are read."""
MAX_WORK = 2_000_000_000
"""Objects times pixels whose colours are looked at in one call."""
_WORD = re.compile(r"[a-z]+")
_ANY = frozenset({"object", "thing", "shape"})
_PLACES: dict[str, Callable[[Object], float]] = {
    "left": lambda thing: thing.box.center[0],
    "leftmost": lambda thing: thing.box.center[0],
    "right": lambda thing: -thing.box.center[0],
    "rightmost": lambda thing: -thing.box.center[0],
    "top": lambda thing: thing.box.center[1],
    "bottom": lambda thing: -thing.box.center[1],
    "large": lambda thing: -thing.box.area,
    "largest": lambda thing: -thing.box.area,
    "big": lambda thing: -thing.box.area,
    "biggest": lambda thing: -thing.box.area,
    "small": lambda thing: thing.box.area,
    "smallest": lambda thing: thing.box.area,
}
"""Place and size words, with the measure that is least for the thing they mean."""


@module(symbolic=True)
def SEG(image: Image) -> list[Object]:
    """The connected regions that differ from the background, largest first."""
    return segment(image)


@module(symbolic=True)
def FACEDET(image: Image) -> list[Object]:
    """Faces: none can be found without a detector.

    Raises:
        RuntimeFailure: always; put a module named FACEDET in this one's place.
    """
    raise RuntimeFailure("no face detector is loaded", remedy="give a module named FACEDET, made with @module")


@module(symbolic=True)
def SELECT(image: Image, object: list[Object], query: str, category: str | None = None) -> list[Object]:
    """The objects that ``query`` names: for each part between commas, those of the colours and categories in it; with a
    place or size word, the one that it fits best. ``category`` keeps objects of that category first.

    Raises:
        RuntimeFailure: the query has no word that an object's category, a colour, a place or a size explains.
        LimitExceeded: a query of more than 100 words, or colours of too many objects in too large an image.
    """
    if (words := len(_WORD.findall(query.lower()))) > MAX_WORDS:
        raise LimitExceeded(f"a query of {words:,} words; at most {MAX_WORDS} are read")
    candidates = [thing for thing in object if category is None or _is_a(thing, category)]

    @cache
    def color_of(number: int) -> np.ndarray:
        _check_work(image, len(candidates))
        return _mean_color(image, candidates[number])

    chosen: dict[int, Object] = {}
    for part in query.lower().split(","):
        chosen |= {number: candidates[number] for number in _select(candidates, color_of, part)}
    return list(chosen.values())


@module(symbolic=True)
def CLASSIFY(image: Image, object: list[Object], categories: list[str]) -> list[Object]:
    """The objects, each named with the colour of ``categories`` that is nearest to its own.

    Raises:
        RuntimeFailure: a category is not a colour: that needs a matcher (:func:`classify_with`).
    """
    colors = [color for name in categories if (color := _named_color(name)) is not None]
    if not colors or len(colors) < len(categories):
        raise RuntimeFailure(
            f"no matcher is loaded to tell {', '.join(map(str, categories)) or 'nothing'} apart",
            remedy="colours need none; for the rest put classify_with(matcher) in the place of CLASSIFY",
        )
    _check_work(image, len(object))
    return [replace(thing, class_name=categories[_nearest(_mean_color(image, thing), colors)]) for thing in object]


@module(symbolic=True)
def LIST(query: str, max: int) -> list[str]:
    """The first ``max`` items that the query itself lists, between commas or "and".

    Raises:
        RuntimeFailure: the query lists none: that needs a text model (:func:`list_with`).
    """
    return _items(query, max)


@module(symbolic=True)
def TAG(image: Image, object: list[Object]) -> Image:
    """The image with every object's box and name drawn on it."""
    picture = image.to_pil()
    draw = PIL.ImageDraw.Draw(picture)
    for thing in object:
        draw.rectangle([thing.box.x1, thing.box.y1, thing.box.x2 - 1, thing.box.y2 - 1], outline="yellow")
        draw.text((thing.box.x1 + 1, thing.box.y1), thing.class_name or thing.category, fill="yellow")
    return Image.from_pil(picture)


@module(symbolic=True)
def COLORPOP(image: Image, object: list[Object]) -> Image:
    """The image in grey, all but the objects."""
    grey = np.broadcast_to(np.asarray(image.to_pil().convert("L")), image.bytes.shape)
    return _blend(image, grey, ~_mask(image, object))


@module(symbolic=True)
def BGBLUR(image: Image, object: list[Object]) -> Image:
    """The image blurred, all but the objects; the blur grows with the image."""
    radius = max(image.width, image.height) / 48
    blurred = np.asarray(image.to_pil().filter(PIL.ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1)
    return _blend(image, blurred, ~_mask(image, object))


@module(symbolic=True)
def REPLACE(image: Image, object: list[Object], prompt: str) -> Image:
    """The objects filled with the colour that ``prompt`` names, or with stripes in two colours drawn from its text."""
    named = [color for word in _WORD.findall(prompt.lower()) if (color := _named_color(word)) is not None]
    if named:
        filling = np.broadcast_to(named[0][:, None, None], image.bytes.shape)
    else:
        seed = np.frombuffer(hashlib.blake2b(prompt.encode(), digest_size=6).digest(), np.uint8).reshape(2, 3)
        rows, columns = np.ogrid[: image.height, : image.width]
        stripes = ((rows % 6).astype(np.uint8) + (columns % 6).astype(np.uint8)) // 3 % 2 == 1
        filling = np.where(stripes, seed[1][:, None, None], seed[0][:, None, None])
    return _blend(image, filling, _mask(image, object))


@module(symbolic=True)
def EMOJI(image: Image, object: list[Object], emoji: str) -> Image:
    """A drawn face over each object: smiling, or sad, surprised, or in sunglasses where the name says so."""
    picture = image.to_pil()
    for thing in object:
        _draw_face(picture, thing, set(_WORD.findall(emoji.lower().replace("_", " "))))
    return Image.from_pil(picture)


def list_with(text: Callable[[str, int], Sequence[str]], version: str) -> FunctionModule:
    """LIST answered by a text model: ``text(query, max)`` gives the items; ``version`` names the model."""

    @module(name="LIST", version=version)
    def answer(query: str, max: int) -> list[str]:
        return list(text(query, max))[:max]

    return answer


def classify_with(matcher: Callable[[Image, list[str]], Sequence[float]], version: str) -> FunctionModule:
    """CLASSIFY answered by ``matcher(crop, categories)``, which gives a score a category; ``version`` names it."""

    @module(name="CLASSIFY", version=version)
    def answer(image: Image, object: list[Object], categories: list[str]) -> list[Object]:
        found = []
        for thing in object:
            scores = np.asarray(matcher(image.crop(*thing.box[:4]), categories))
            best = int(scores.argmax())
            found.append(replace(thing, class_name=categories[best], class_score=float(scores[best])))
        return found

    return answer


def _items(query: str, limit: int) -> list[str]:
    items = [item.strip() for item in re.split(r",|\band\b", query) if item.strip()]
    if len(items) < 2:
        raise RuntimeFailure(
            f"no text model is loaded to answer {query!r}", remedy="put list_with(text, version) in the place of LIST"
        )
    return items[:limit]


def _select(things: list[Object], color_of: Callable[[int], np.ndarray], query: str) -> list[int]:
    """The positions in ``things`` of those that ``query`` names; ``color_of`` gives the colour of one by its position."""
    understood = False
    place = None
    candidates = list(range(len(things)))
    for word in _WORD.findall(query):
        fitting = [number for number in candidates if _is_a(things[number], word)]
        color = _named_color(word)
        if word in _PLACES:
            place = place or _PLACES[word]
        elif fitting:
            candidates = fitting
        elif color is not None:
            known = [color, *(known for name in _BASIC if (known := _named_color(name)) is not None)]
            candidates = [number for number in candidates if _nearest(color_of(number), known) == 0]
        else:
            continue
        understood = True
    if not understood:
        raise RuntimeFailure(
            f"cannot select by {query.strip()!r}", remedy="name a category that was found, a colour, a place or a size"
        )
    return sorted(candidates, key=lambda number: place(things[number]))[:1] if place else candidates


_BASIC = "black gray white teal brown red green blue yellow purple orange cyan pink".split()


def _is_a(thing: Object, word: str) -> bool:
    word = word.strip().lower()
    names = {thing.category.lower(), (thing.class_name or "").lower()}
    return word in _ANY or word in names or (word.endswith("s") and (word[:-1] in names or word[:-1] in _ANY))


def _check_work(image: Image, things: int) -> None:
    """Refuse to look at each pixel for each thing where that takes more than seconds."""
    if things * image.width * image.height > MAX_WORK:
        raise LimitExceeded(f"{things:,} objects in an image of {image.width}x{image.height}", remedy="reduce the image first")


def _named_color(name: str) -> np.ndarray | None:
    try:
        return np.array(PIL.ImageColor.getrgb(name.strip().lower())[:3], np.uint8)
    except ValueError:
        return None


def _nearest(color: np.ndarray, known: Sequence[np.ndarray]) -> int:
    return int(np.abs(color - np.stack(known).astype(np.float64)).sum(axis=1).argmin())


def _mean_color(image: Image, thing: Object) -> np.ndarray:
    """The median colour of the object, float64 [3]: a thin pattern or outline does not change it."""
    inside = _mask(image, [thing])
    if not inside.any():
        raise RuntimeFailure("an object covers no pixel of the image", where=f"object {thing.inst_id}")
    return np.median(image.bytes[:, inside], axis=1)


def _mask(image: Image, things: list[Object]) -> np.ndarray:
    """Whether each pixel, [H, W], is inside any of ``things``: their masks, or their boxes where there is none."""
    inside = np.zeros((image.height, image.width), bool)
    for thing in things:
        if thing.mask is None:
            x1, y1, x2, y2 = (max(0, round(edge)) for edge in thing.box[:4])
            inside[y1:y2, x1:x2] = True
        elif thing.mask.shape == inside.shape:
            inside |= thing.mask
        else:
            raise RuntimeFailure(f"a mask of {thing.mask.shape} for an image of {inside.shape}: it is another image's")
    return inside


def _blend(image: Image, other: np.ndarray, where: np.ndarray) -> Image:
    return Image.from_array(np.where(where, other, image.bytes).astype(np.uint8))


def _draw_face(picture: PIL.Image.Image, thing: Object, words: set[str]) -> None:
    draw = PIL.ImageDraw.Draw(picture)
    (cx, cy), r = thing.box.center, max(thing.box.x2 - thing.box.x1, thing.box.y2 - thing.box.y1) / 2
    draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill="gold", outline="black")
    eye = max(0.5, r / 7)
    for side in (-1, 1):
        x, y = cx + side * r * 0.4, cy - r * 0.25
        if "sunglasses" in words:
            draw.rectangle([x - 2 * eye, y - eye, x + 2 * eye, y + eye], fill="black")
        else:
            draw.ellipse([x - eye, y - eye, x + eye, y + eye], fill="black")
    if words & {"surprised", "open", "wow"}:
        draw.ellipse([cx - eye, cy + r * 0.3, cx + eye, cy + r * 0.3 + 2 * eye], fill="black")
    elif words & {"sad", "frowning", "crying", "angry"}:
        draw.arc([cx - r * 0.5, cy + r * 0.3, cx + r * 0.5, cy + r], 200, 340, fill="black")
    else:
        draw.arc([cx - r * 0.5, cy - r * 0.3, cx + r * 0.5, cy + r * 0.6], 20, 160, fill="black")
