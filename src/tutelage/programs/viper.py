"""ViperGPT programs: ``def execute_command(image)`` in restricted Python, over patches of images.

Source: Surís et al., "ViperGPT: Visual Inference via Python Execution for Reasoning", ICCV 2023. The same modules
answer these programs and VisProg's: find asks LOC, simple_query VQA, verify_property VERIFY, best_text_match MATCH,
compute_depth DEPTH, llm_query LLM, best_image_match SCORE.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage import storage
from tutelage.programs.handles import Handles
from tutelage.programs.interpreter.library import viper_library
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.patches import Asked, Request
from tutelage.programs.interpreter.reader import Reader
from tutelage.programs.isolation import Sandbox, shared_sandbox
from tutelage.programs.types import ProgramFailure, ProgramRun, Signature, UndefinedVariable, Value

_DEFAULT_ARGUMENTS: Mapping[str, Value] = {"possible_answers": [], "query": ""}
Begin = Callable[[dict[str, Any], Handles], ProgramRun]
"""From the arguments, as the interpreter holds them, to a run."""


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

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
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
        handles = Handles()
        return self.begin(self._arguments(handles, state), handles)

    def _arguments(self, handles: Handles, state: Mapping[str, Value]) -> dict[str, Any]:
        first = self.args[0]
        if first == "image_dict":
            given: Any = {"left": handles.view(state["LEFT"]), "right": handles.view(state["RIGHT"])}
        elif first == "video":
            given = handles.video(state["VIDEO"])
        else:
            given = handles.view(state["IMAGE"])
        return {first: given, **{name: handles.inward(state.get(name, _DEFAULT_ARGUMENTS[name])) for name in self.args[1:]}}


def _steps(run: Generator[Asked, Any, Any], handles: Handles) -> ProgramRun:
    """A run in this process."""
    try:
        asked = next(run)
        while True:
            calls = handles.call(asked) if isinstance(asked, Request) else [handles.call(request) for request in asked]
            asked = run.send(handles.inward((yield calls)))
    except StopIteration as stop:
        return handles.outward(stop.value)
    finally:
        run.close()


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
        name = storage.fingerprint("viper", text.encode(errors="surrogatepass"))
        sandbox = self._sandbox
        if sandbox is None:
            program = self._reader.read(text)
            return ViperProgram(
                text, name, program.inputs, program.args, lambda given, handles: _steps(program.run(given), handles)
            )
        modules = self._modules
        inputs, args = sandbox.check(text, modules)
        return ViperProgram(text, name, inputs, args, lambda given, handles: sandbox.run(text, modules, given, handles))


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
