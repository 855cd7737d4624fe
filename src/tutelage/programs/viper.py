"""ViperGPT programs: ``def execute_command(image)`` in restricted Python, over patches of images.

Source: Surís et al., "ViperGPT: Visual Inference via Python Execution for Reasoning", ICCV 2023. The same modules answer these
programs and VisProg's: find calls LOC, simple_query VQA, verify_property VERIFY, best_text_match MATCH, compute_depth DEPTH,
llm_query LLM, best_image_match SCORE. Programs run in a sandbox, see :mod:`~tutelage.programs.sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tutelage import storage
from tutelage.programs.sandbox import Sandbox, shared_sandbox
from tutelage.programs.sandbox_process import Limits
from tutelage.programs.sandbox_run import Modules, SandboxProgram
from tutelage.programs.types import ProgramFailure, ProgramRun, RuntimeFailure, Signature, TypeFailure, UndefinedVariable, Value
from tutelage.programs.values import Box, Image, Object
from tutelage.programs.viper_api import Api, api_of, prelude_names
from tutelage.programs.viper_check import check
from tutelage.programs.viper_source import Role, entry_of, read_source, role_of_name, roles_of

_INPUTS = {"image": ("IMAGE",), "pair": ("LEFT", "RIGHT"), "video": ("VIDEO",), "left": ("LEFT",), "right": ("RIGHT",)}
"""The initial variables that an argument of each role reads. A list of images takes those that the run is given."""


@dataclass(frozen=True, eq=False)
class ViperProgram:
    """A checked ViperGPT program.

    ``inputs`` are IMAGE, or LEFT and RIGHT, or VIDEO (a list of images); a state may also hold ``possible_answers`` (list of
    texts) and ``query`` (text) for programs that take them. ``client`` names who wants the run: programs of different clients
    never share a session of the sandbox.
    """

    text: str
    hash: str
    inputs: tuple[str, ...]
    roles: tuple[Role, ...]
    names: tuple[str, ...]
    body: SandboxProgram
    modules: Modules
    sandbox: Sandbox
    client: str = ""
    dsl: str = "viper"

    def for_client(self, client: str) -> ViperProgram:
        """The same program, run for another client."""
        return replace(self, client=client)

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
        """Run on ``state``: a generator of calls, several at a time where none of them waits for another's answer.

        ``Call.step`` counts the calls from 0. The generator also has ``post(value)``: it sends a value without waiting, and
        the next ``send`` gives what comes of it.

        The answer is a text, number or bool, a Box for a patch (without its margin, in pixels of the whole image, origin
        top-left), an Image, or a list or dict of these.
        """
        for name in self.inputs:
            if name not in state:
                raise UndefinedVariable(f"the run was not given {name}", remedy=f"give {self.inputs}")
        pictures = Pictures()
        given = [(role, self._argument(pictures, role.role, role.name, state)) for role in self.roles]
        positional = [value for role, value in given if not role.keyword]
        named = {role.name: value for role, value in given if role.keyword}
        names = {name: self._argument(pictures, role_of_name(name) or "", name, state) for name in self.names}
        return self.sandbox.run(self.body, self.modules, pictures, positional, named, names, self.client)

    def _argument(self, pictures: Pictures, role: str, name: str, state: Mapping[str, Value]) -> Any:
        match role:
            case "image":
                return pictures.view(state["IMAGE"])
            case "pair":
                return {"left": pictures.view(state["LEFT"]), "right": pictures.view(state["RIGHT"])}
            case "left" | "right":
                return pictures.view(state[role.upper()])
            case "video":
                return pictures.video(state["VIDEO"])
            case "list":
                return pictures.all(state)
            case "options":
                return pictures.encode(state.get("possible_answers", []))
            case "question":
                return pictures.encode(state.get("query", ""))
            case "library":
                return ("name", name)
        return None


class Pictures:
    """The images of one run, by number: the sandbox holds regions of them, modules are given the pixels."""

    def __init__(self) -> None:
        self._roots: list[tuple[Image, tuple[int, int, int, int]]] = []
        self._seen: dict[tuple[Any, ...], Image] = {}
        """What each region shows that was asked about: the same is asked about again and again."""

    def view(self, image: Value) -> tuple[Any, ...]:
        """A new image for the sandbox."""
        if not isinstance(image, Image):
            raise TypeFailure(f"an image is needed, not {type(image).__name__}")
        x1, y1, x2, y2 = image.region
        width, height = x2 - x1, y2 - y1
        found = ("image", len(self._roots), (0, 0, width, height), (width, height))
        self._roots.append((image, (0, 0, width, height)))
        self._seen[found] = image
        return found

    def video(self, frames: Value) -> list[Any]:
        """A new video for the sandbox."""
        if not isinstance(frames, (list, tuple)):
            raise TypeFailure(f"a video is a list of images, not {type(frames).__name__}")
        if not frames:
            raise RuntimeFailure("a video without a frame", where="VIDEO", remedy="is the file whole?")
        return [self.view(frame) for frame in frames]

    def all(self, state: Mapping[str, Value]) -> list[Any]:
        """All images of a run, in the order of its state."""
        if "VIDEO" in state:
            return self.video(state["VIDEO"])
        found = [self.view(value) for value in state.values() if isinstance(value, Image)]
        if not found:
            raise UndefinedVariable("the run was not given an image", remedy="give IMAGE, or LEFT and RIGHT")
        return found

    def encode(self, value: Value) -> Any:
        """A module's output, or an argument, as plain data."""
        kind = type(value)
        if kind is str:
            return value if value.isascii() else value.encode(errors="replace").decode()
        if kind in (bool, int, float) or value is None:
            return value
        if kind is Box:
            return ("box", *map(float, value))
        if kind is list or kind is tuple:
            return [("box", *map(float, part)) if type(part) is Box else self.encode(part) for part in value]
        if isinstance(value, Image):
            return self.view(value)
        if kind is Object:
            return ("box", *map(float, value.box))
        if kind is dict:
            return {str(name): self.encode(part) for name, part in value.items()}
        if isinstance(value, str):
            return self.encode(str(value))
        if hasattr(value, "item"):  # a number of numpy
            return self.encode(value.item())
        raise TypeFailure(f"a module answered with {kind.__name__}, which no program can hold")

    def decode(self, data: Any) -> Value:
        """Plain data from the sandbox as modules and callers know it.

        Raises:
            RuntimeFailure: it is none.
        """
        kind = type(data)
        if kind is tuple:
            try:
                if data[0] == "image":
                    return self._image(data)
                if data[0] == "box":
                    return Box(*map(float, data[1:]))
            except (IndexError, TypeError, ValueError):
                pass
            raise RuntimeFailure("the sandbox sent a value that is none")
        if kind is list:
            return [self.decode(part) for part in data]
        if kind is dict:
            return {str(name): self.decode(part) for name, part in data.items()}
        return data

    def _image(self, data: tuple[Any, ...]) -> Image:
        found = self._seen.get(data)
        if found is None:
            root, (x1, y1, x2, y2) = int(data[1]), map(int, data[2])
            image, (_, _, width, height) = self._roots[root]
            if not (root >= 0 and 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise IndexError
            found = self._seen[data] = image.crop(x1, y1, x2, y2)
        return found


class Parser:
    """Reads programs, each text once: the same text again is the same program.

    ``signatures`` are those of the modules that programs may call, by name. Programs run in ``sandbox``, or in the one of this
    process for these ``limits``. At most ``keep`` texts are remembered.
    """

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        *,
        sandbox: Sandbox | None = None,
        limits: Limits | None = None,
        keep: int = 50_000,
    ):
        self.signatures, self._keep = dict(signatures), keep
        self.limits = sandbox.limits if sandbox is not None else limits or Limits()
        self._given, self._modules = sandbox, Modules.of(signatures)
        self._known: dict[str, ViperProgram | ProgramFailure] = {}

    @cached_property
    def sandbox(self) -> Sandbox:
        """Where programs run; no process begins before one does."""
        return self._given or shared_sandbox(self.limits)

    @cached_property
    def api(self) -> Api:
        """What programs find beside their own names."""
        return api_of(self.signatures)

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
        source = read_source(text, self.limits.source)
        entry = entry_of(source.tree)
        assert entry is not None
        try:
            checked = check(source.tree, source.text, self.api)
        except ProgramFailure as failure:
            if source.first_line != 1 and (words := str(failure.where).split())[0] == "line":
                failure.where = f"line {int(words[1]) + source.first_line - 1}"
            raise
        roles = roles_of(entry, prelude_names())
        wanted = [*[role.role for role in roles], *[role_of_name(name) or "" for name in checked.reads]]
        inputs = tuple(dict.fromkeys(name for role in wanted for name in _INPUTS.get(role, ())))
        body = SandboxProgram(checked.text, entry.name, source.first_line, checked.once, checked.seeded, checked.private)
        name = storage.fingerprint("viper", text.encode(errors="surrogatepass"))
        return ViperProgram(text, name, inputs, tuple(roles), checked.reads, body, self._modules, self.sandbox)


def parse(
    text: str,
    signatures: Mapping[str, Signature],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
) -> ViperProgram:
    """A checked program from its text; ``sandbox`` and ``limits`` as in :class:`Parser`.

    Raises:
        ParseFailure: not Python, or no ``execute_command``.
        ForbiddenSyntax: a construct, name or attribute that the language does not have.
        UndefinedVariable: a name that nothing defines.
        UnknownModule: the program needs a module that is not in ``signatures``.
        LimitExceeded: the text is too long or too deeply nested.
    """
    return Parser(signatures, sandbox=sandbox, limits=limits).parse(text)
