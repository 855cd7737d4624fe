"""ViperGPT programs: ``def execute_command(image)`` in restricted Python, over patches of images.

Source: Surís et al., "ViperGPT: Visual Inference via Python Execution for Reasoning", ICCV 2023. The same modules
answer these programs and VisProg's: find asks LOC, simple_query VQA, verify_property VERIFY, best_text_match MATCH,
compute_depth DEPTH, llm_query LLM, best_image_match SCORE.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage import files
from tutelage.programs.interpreter.library import viper_library
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.patches import Asked, Found, Request, Video, View
from tutelage.programs.interpreter.reader import Reader
from tutelage.programs.isolation import Sandbox, Session, shared_sandbox
from tutelage.programs.language import (
    Call,
    ProgramFailure,
    RuntimeFailure,
    Signature,
    Steps,
    TypeFailure,
    UndefinedVariable,
    Value,
)
from tutelage.programs.values import Box, Image, Object

_UNSAID: Mapping[str, Value] = {"possible_answers": [], "query": ""}
Begin = Callable[[Mapping[str, Any]], Generator[Asked, Any, Any]]


@dataclass(frozen=True, eq=False)
class ViperProgram:
    """A checked ViperGPT program.

    ``inputs`` are IMAGE, or LEFT and RIGHT (``image_dict``), or VIDEO (a list of images); a state may also hold
    ``possible_answers`` (list of texts) and ``query`` (text) for programs that take them.
    """

    text: str
    hash: str
    inputs: tuple[str, ...]
    args: tuple[str, ...]
    begin: Begin
    dsl: str = "viper"

    def start(self, state: Mapping[str, Value]) -> Steps:
        """Run on ``state``: a generator of calls, several at a time where none of them waits for another's answer.
        ``Call.step`` counts the calls from 0, in the order of the text. Where the program runs in a sandbox,
        the generator also has ``post(value)``: it sends a value without waiting, and the next ``send`` gives what comes
        of it.

        The answer is a text, number or bool, a Box for a patch (without its margin, in pixels of the whole image,
        origin top-left), an Image, or a list of these.
        """
        for name in self.inputs:
            if name not in state:
                raise UndefinedVariable(f"the run was not given {name}", remedy=f"give {self.inputs}")
        images = _Images()
        run = self.begin(self._arguments(images, state))
        return _PostedSteps(run, images) if isinstance(run, Session) else _Steps(run, images)

    def _arguments(self, images: _Images, state: Mapping[str, Value]) -> dict[str, Any]:
        first = self.args[0]
        if first == "image_dict":
            given: Any = {"left": images.view(state["LEFT"]), "right": images.view(state["RIGHT"])}
        elif first == "video":
            given = images.video(state["VIDEO"])
        else:
            given = images.view(state["IMAGE"])
        return {first: given, **{name: images.inward(state.get(name, _UNSAID[name])) for name in self.args[1:]}}


class _Steps(Generator[Call | list[Call], Value, Value]):
    """A run: the interpreter's requests as calls, with the images that they are about."""

    __slots__ = ("_run", "_images")

    def __init__(self, run: Generator[Asked, Any, Any], images: _Images):
        self._run, self._images = run, images

    def send(self, value: Value) -> Call | list[Call]:
        """The next call, or calls that are answered together; ``value`` answers the last."""
        return self._next(self._inward(value))

    def _inward(self, value: Value) -> Any:
        """A module's answer as the interpreter holds it; the run ends where there is no such thing."""
        try:
            return self._images.inward(value)
        except BaseException:
            self._run.close()
            raise

    def _next(self, value: Any) -> Call | list[Call]:
        run, images = self._run, self._images
        try:
            asked = run.send(value)
            return images.call(asked) if isinstance(asked, Request) else [images.call(request) for request in asked]
        except StopIteration as stop:
            raise StopIteration(images.outward(stop.value)) from None
        except BaseException:
            run.close()
            raise

    def throw(self, *error: Any) -> Any:
        """End the run."""
        return self._run.throw(*error)

    def close(self) -> None:
        """End the run."""
        self._run.close()


class _PostedSteps(_Steps):
    """A run in a sandbox, which can be sent a value without waiting for what comes of it."""

    __slots__ = ("_session",)

    def __init__(self, session: Session, images: _Images):
        super().__init__(session, images)
        self._session = session

    def post(self, value: Value) -> None:
        """Send ``value``: what the next :meth:`send` is given does not count."""
        self._session.post(value if type(value) is str else self._inward(value))

    def send(self, value: Value) -> Call | list[Call]:
        """The next call or calls; ``value`` answers the last, where none was posted."""
        return self._next(None if self._session.due else self._inward(value))


class _Images:
    """The images of one run, by number: the interpreter holds views of them, modules are given the pixels."""

    def __init__(self) -> None:
        self._roots: list[tuple[Image, tuple[int, int, int, int]]] = []

    def view(self, image: Value) -> View:
        """A new image for the interpreter."""
        if not isinstance(image, Image):
            raise TypeFailure(f"an image is needed, not {type(image).__name__}")
        width, height = image.width, image.height
        self._roots.append((image, (0, 0, width, height)))
        return View(len(self._roots) - 1, 0, 0, width, height, width, height)

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


class Parser:
    """Reads programs, each text once: the same text again is the same program.

    ``signatures`` are those of the modules that programs may call, by name. ``isolate`` True, the default, runs
    programs in this process's shared sandbox; a :class:`Sandbox` in that one; False in this process, which is for texts
    that somebody vouches for. ``limits`` are the sandbox's own where one is given. At most ``keep`` texts are
    remembered.
    """

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        *,
        isolate: bool | Sandbox = True,
        limits: Limits | None = None,
        keep: int = 50_000,
    ):
        self.signatures, self._keep = dict(signatures), keep
        self._limits = limits or Limits()
        self._reader = Reader(viper_library(self.signatures), self._limits)
        self._sandbox: Sandbox | None = None
        if isolate is not False:
            self._sandbox = isolate if isinstance(isolate, Sandbox) else shared_sandbox(self._limits)
            self._modules = self._sandbox.modules(self.signatures)
        self._known: dict[str, ViperProgram | ProgramFailure] = {}

    def try_parse(self, text: str, inputs: tuple[str, ...] | None = None) -> ViperProgram | ProgramFailure:
        """The program, or the typed failure that :func:`parse` would raise.

        Where ``inputs`` are named, a program that reads others fails.
        """
        found = self._known.get(text)
        if found is None:
            try:
                found = self._read(text)
            except ProgramFailure as failure:
                found = failure
            while len(self._known) >= self._keep:
                del self._known[next(iter(self._known))]
            self._known[text] = found
        if inputs is not None and isinstance(found, ViperProgram) and not set(found.inputs) <= set(inputs):
            return UndefinedVariable(f"the program reads {', '.join(found.inputs)}", remedy=f"it is given {inputs}")
        return found

    def parse(self, text: str, inputs: tuple[str, ...] | None = None) -> ViperProgram:
        """The program; raises as :func:`parse` does."""
        found = self.try_parse(text, inputs)
        if isinstance(found, ProgramFailure):
            raise found.with_traceback(None)
        return found

    def _read(self, text: str) -> ViperProgram:
        name = files.fingerprint("viper", text.encode(errors="surrogatepass"))
        sandbox = self._sandbox
        if sandbox is None:
            program = self._reader.read(text)
            return ViperProgram(text, name, program.inputs, program.args, program.run)
        modules = self._modules
        inputs, args = sandbox.check(text, modules)
        return ViperProgram(text, name, inputs, args, lambda given: sandbox.run(text, modules, given))


def parse(
    text: str,
    signatures: Mapping[str, Signature],
    *,
    isolate: bool | Sandbox = True,
    limits: Limits | None = None,
) -> ViperProgram:
    """A checked program from its text; ``isolate`` and ``limits`` as in :class:`Parser`.

    Raises:
        ParseFailure: not Python, or no ``execute_command``.
        Refused: a construct, name or attribute that the language does not have.
        UndefinedVariable: a name that nothing defines.
        UnknownModule: the program needs a module that is not in ``signatures``.
        TypeFailure: a call with wrong arguments.
        LimitExceeded: the text is too long or too deeply nested.
    """
    return Parser(signatures, isolate=isolate, limits=limits).parse(text)
