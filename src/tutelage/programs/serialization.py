"""Values as JSON and as keys: how a trace is written, and when two calls are the same question."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.types import Value
from tutelage.programs.values import Box, Image, Object

_SCALARS = (str, bool, int, float, type(None))

FindImage = Callable[[str, tuple[int, int, int, int]], Image]
"""From the key of a picture, and a region of it, to the image."""


class ImageRef(NamedTuple):
    """An image whose pixels are not at hand: the key of its picture, and the region (x1, y1, x2, y2) of it."""

    root_key: str
    region: tuple[int, int, int, int]

    @property
    def key(self) -> tuple[str, tuple[int, int, int, int]]:
        """The same key as the image's own."""
        return (self.root_key, self.region)


def encode(value: Value) -> Any:
    """``value`` as JSON holds it; :func:`decode` gives it back.

    A box is ``[x1, y1, x2, y2, score]``, an image ``{"image": key, "region": [x1, y1, x2, y2]}``, a mask its run
    lengths. What JSON cannot hold becomes ``{"opaque": type}``, which cannot be read back.
    """
    if type(value) in _SCALARS or isinstance(value, str):
        return value
    if isinstance(value, (Image, ImageRef)):
        return {"image": value.root_key, "region": list(value.region)}
    if isinstance(value, Box):
        return [float(number) for number in value]
    if isinstance(value, (list, tuple)):
        items = [encode(item) for item in value]
        return {"list": items} if _looks_like_box(items) else items
    if isinstance(value, dict):
        return {"dict": {str(key): encode(item) for key, item in value.items()}}
    if isinstance(value, Object):
        return {"object": _encode_object(value)}
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return {"mask": _encode_mask(value)}
    return {"opaque": type(value).__name__}


def decode(data: Any, find_image: FindImage | None = None) -> Value:
    """The value that :func:`encode` wrote; images become :class:`ImageRef` unless ``find_image`` knows them.

    Raises:
        InputError: not what :func:`encode` writes, or an opaque value.
    """
    if type(data) in _SCALARS:
        return data
    if isinstance(data, list):
        return Box(*data) if _looks_like_box(data) else [decode(item, find_image) for item in data]
    try:
        match data:
            case {"image": str(key), "region": [int(), int(), int(), int()] as region}:
                return (find_image or ImageRef)(key, tuple(region))
            case {"list": list(items)}:
                return [decode(item, find_image) for item in items]
            case {"dict": dict(items)}:
                return {key: decode(item, find_image) for key, item in items.items()}
            case {"object": dict(fields)}:
                return _decode_object(fields)
            case {"mask": dict(mask)}:
                return _decode_mask(mask)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a stored value: {error!r}", where=str(data)[:80]) from error
    raise InputError("not a stored value", where=str(data)[:80], remedy="only what a trace wrote can be read")


def is_json_exact(value: Value) -> bool:
    """Whether :func:`decode` gives ``value`` back whole without its pixels: no image and nothing opaque inside."""
    if type(value) in _SCALARS or isinstance(value, Box):
        return True
    if type(value) is list:
        return all(map(is_json_exact, value))
    return isinstance(value, Object) and not value.extra


def input_key(args: Mapping[str, Value]) -> Hashable | None:
    """A key that is equal where the arguments are, or None where an argument cannot be compared."""
    try:
        return tuple(args), tuple([_key(value) for value in args.values()])
    except TypeError:
        return None


def input_hash(module: str, args: Mapping[str, Value]) -> str:
    """16 hex digits naming the call, whatever module version answers it.

    Raises:
        InputError: an argument is of a type that cannot be compared.
    """
    key = input_key(dict(sorted(args.items())))
    if key is None:
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in args.items())
        raise InputError(f"a call of {module} that cannot be named ({kinds})", remedy="pass images, boxes, texts")
    return digest(module, key).hex()[:16]


def digest(*parts: Any) -> bytes:
    """16 bytes that change when any part changes; parts are what :func:`input_key` gives, texts and numbers."""
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).digest()


def _key(value: Value) -> Hashable:
    kind = type(value)
    if kind is str:
        return value
    if kind is Image or kind is ImageRef:
        return value.key
    if kind is list or kind is tuple:
        return (kind is list, *map(_key, value))
    if kind is Box:
        return tuple(value)
    if kind in _SCALARS:
        return kind.__name__, value  # 1, 1.0 and True are equal in Python and three answers to a program
    if kind is dict:
        return "dict", tuple(value), tuple(map(_key, value.values()))
    if kind is Object and not value.extra:
        mask = value.mask
        pixels = None if mask is None else (mask.shape, hashlib.blake2b(mask.tobytes(), digest_size=8).digest())
        return (*value.box, pixels, value.category, value.inst_id, value.class_name, value.class_score)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Image):
        return value.key
    raise TypeError(f"no key for {kind.__name__}")


def _looks_like_box(items: list[Any]) -> bool:
    return len(items) == 5 and all(type(item) in (int, float) for item in items)


def _encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """Run lengths over the rows, beginning with the count of False."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]]) if mask.size else np.zeros(1, bool)
    edges = np.flatnonzero(np.diff(flat))
    return {"shape": list(mask.shape), "runs": np.diff(edges, prepend=0).tolist()}


def _decode_mask(data: dict[str, Any]) -> np.ndarray:
    runs = data["runs"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(data["shape"])


def _encode_object(thing: Object) -> dict[str, Any]:
    data = {"box": encode(thing.box), "category": thing.category, "inst_id": thing.inst_id}
    optional = {"class": thing.class_name, "class_score": thing.class_score}
    data |= {key: value for key, value in optional.items() if value is not None}
    return data if thing.mask is None else data | {"mask": _encode_mask(thing.mask)}


def _decode_object(data: dict[str, Any]) -> Object:
    mask = _decode_mask(data["mask"]) if "mask" in data else None
    box, name, score = Box(*data["box"]), data.get("class"), data.get("class_score")
    return Object(box, mask, data["category"], data["inst_id"], name, score)


def strict_json(row: Any) -> bytes:
    """``row`` as strict JSON in ASCII, whatever texts and numbers it holds."""
    try:
        text = json.dumps(row, allow_nan=False)
    except ValueError:
        text = json.dumps(_representable(row))
    return text.encode()


def _representable(value: Any) -> Any:
    """``value`` with the numbers that JSON does not have, or Python does not write, as texts."""
    if isinstance(value, dict):
        return {key: _representable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_representable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"a number of {value.bit_length():,} bits"
    return value
