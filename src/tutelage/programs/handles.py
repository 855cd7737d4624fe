"""The images of one run, by number: the interpreter holds views of them, modules are given the pixels."""

from __future__ import annotations

from typing import Any

from tutelage.programs.interpreter.patches import Found, Request, Video, View
from tutelage.programs.interpreter.wire import decode, encode, encode_boxes, written
from tutelage.programs.types import Call, RuntimeFailure, TypeFailure, Value
from tutelage.programs.values import Box, Image, Object


class Handles:
    """What a run's values are on either side: images, boxes and answers outside, views and what was found inside."""

    def __init__(self) -> None:
        self._roots: list[tuple[Image, tuple[int, int, int, int]]] = []
        self._seen: dict[str, Value] = {}
        """What each view that crossed to another process shows: the same is asked about again and again."""

    def view(self, image: Value) -> View:
        """A new image for the interpreter."""
        if not isinstance(image, Image):
            raise TypeFailure(f"an image is needed, not {type(image).__name__}")
        x1, y1, x2, y2 = image.region
        width, height = x2 - x1, y2 - y1
        view = View(len(self._roots), 0, 0, width, height, width, height)
        self._roots.append((image, view[1:5]))
        self._seen[written(view)] = image
        return view

    def video(self, frames: Value) -> Video:
        """A new video for the interpreter."""
        if not isinstance(frames, (list, tuple)):
            raise TypeFailure(f"a video is a list of images, not {type(frames).__name__}")
        if not frames:
            raise RuntimeFailure("a video without a frame", where="VIDEO", remedy="is the file whole?")
        return Video(tuple(self.view(frame) for frame in frames))

    def call(self, request: Request) -> Call:
        """A request of the interpreter as the modules' call."""
        module, args, number = request
        return Call(module, {name: arg if type(arg) is str else self.outward(arg) for name, arg in args.items()}, number)

    def outward(self, value: Any) -> Value:
        """A value of the interpreter as modules and callers know it."""
        kind = type(value)
        if kind is str:
            return value
        if kind is View:
            return self._image(value)
        if kind is Found:
            return Box(*value)
        if kind is list or kind is tuple:
            return [self.outward(part) for part in value]
        if kind is dict:
            return {name: self.outward(part) for name, part in value.items()}
        return value

    def _image(self, view: View) -> Image:
        if not 0 <= view.root < len(self._roots):
            raise RuntimeFailure("a view of an image that was never given")
        image, whole = self._roots[view.root]
        if view[1:5] == whole:
            return image
        return image.crop(view.x1, view.y1, view.x2, view.y2)

    def inward(self, value: Value) -> Any:
        """A module's answer, or an argument, as the interpreter holds it."""
        kind = type(value)
        if kind in (str, bool, int, float) or value is None:
            return value
        if kind is Box:
            return Found(*map(float, value))
        if isinstance(value, Image):
            return self.view(value)
        if kind is Object:
            return Found(*map(float, value.box))
        if kind is list or kind is tuple:  # most answers are lists of boxes
            return [Found(*map(float, part)) if type(part) is Box else self.inward(part) for part in value]
        if kind is dict:
            return {str(name): self.inward(part) for name, part in value.items()}
        if isinstance(value, str):
            return str(value)
        if hasattr(value, "item"):  # a number of numpy
            return self.inward(value.item())
        raise TypeFailure(f"a module answered with {kind.__name__}, which no program can hold")

    def decoded(self, data: Any) -> Value:
        """A value of an interpreter in another process, from JSON, as modules and callers know it.

        Raises:
            NotAMessage: it is none.
        """
        if type(data) is not dict or type(view := data.get("view")) is not str:
            return self.outward(decode(data))
        found = self._seen.get(view)
        if found is None:
            found = self._seen[view] = self.outward(decode(data))
        return found

    def encoded(self, value: Value) -> Any:
        """A module's answer, as JSON, for an interpreter in another process."""
        kind = type(value)
        if kind is str:
            return value
        if kind is list or kind is tuple:
            if value and {*map(type, value)} == {Box}:
                return encode_boxes(value)
            return [self.encoded(part) for part in value]
        return encode(self.inward(value))
