"""Run visual programs: one on an image, or a file of them."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from tutelage.cli._modules import choose_modules, load_modules, parser_of
from tutelage.cli._options import TOY, Dsl, DslOption, ModuleOption, ModulesOption, Seed
from tutelage.cli._tables import run_and_print
from tutelage.errors import InputError
from tutelage.terminal import JsonOut, console, progress

if TYPE_CHECKING:
    from tutelage.programs.run_context import Job
    from tutelage.programs.trace import Trace
    from tutelage.programs.types import Module

app = typer.Typer()

LINE = '{"id", "dsl": "visprog"|"viper", "program", "images": {"IMAGE": path} or {"LEFT": path, "RIGHT": path}}'
SINGLE, PAIR = ("IMAGE",), ("LEFT", "RIGHT")
REREAD = 64
"""Decoded images that are kept for the lines that follow, besides those of running programs."""


@app.command(
    epilog="Example: tutelage run program.txt --image photo.png. "
    "A file of programs: tutelage run --batch programs.jsonl --json traces.jsonl"
)
def run(
    program: Annotated[str | None, typer.Argument(help="A file that holds one program; - is standard input.")] = None,
    image: Annotated[Path | None, typer.Option(help="The image that the program calls IMAGE.")] = None,
    left: Annotated[Path | None, typer.Option(help="The image that it calls LEFT.")] = None,
    right: Annotated[Path | None, typer.Option("--right", "--image2", help="The image that it calls RIGHT.")] = None,
    dsl: DslOption = Dsl.visprog,
    batch: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help=f"Run a file of programs, a line {LINE}.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of a batch's relative paths; default: the file's own."),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Programs of a batch that run together; fewer need less memory.")] = 512,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store module outputs in this file, for this and later runs.")
    ] = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    json: JsonOut = None,
) -> None:
    """Run a program on an image and show every step; or a file of programs, answered by a file of traces.

    A batch writes a JSON line for each line, in the same order: {"id", "status", "answer", "steps", "error", ...}. A
    program that fails, or whose image cannot be read, has a status other than "ok"; the exit code is still 0. Without
    --modules a batch runs on the toy modules.
    """
    if (program is None) == (batch is None):
        raise InputError("give one program, or --batch and a file of them", remedy="tutelage run --help shows both")
    if batch is not None:
        if image or left or right:
            raise InputError("the lines of a batch name their own images", remedy="leave out --image, --left and --right")
        typer.echo(f"modules: {modules or TOY}" + ("" if modules else " (the images of a batch are not inspected)"), err=True)
        loaded = load_modules(modules, seed, module or ())
        _run_batch(batch, images or batch.parent, loaded, json or "-", cache, window)
        return
    assert program is not None
    text, state = _text(program), _pictures(image, left, right)
    choice, reason = choose_modules(modules, state.values())
    console(json).print(reason, markup=False, soft_wrap=True)
    loaded = load_modules(choice, seed, module or ())
    from tutelage.programs.run_context import Job

    run_and_print(Job("", parser_of(dsl, loaded).try_parse(text, tuple(state)), state), loaded, json, cache, {"models": reason})


def _text(program: str) -> str:
    try:
        if program == "-":
            return sys.stdin.read().strip()
        return Path(program).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the program: {error}", where=program, remedy="give a text file, or -") from error


def _pictures(image: Path | None, left: Path | None, right: Path | None) -> dict[str, Any]:
    """IMAGE, or LEFT and RIGHT; ``--image`` beside ``--image2`` is the left one."""
    from tutelage.programs.values import Image

    if right is not None:
        left, image = left or image, None if left is None else image
    match image, left, right:
        case Path(), None, None:
            return {"IMAGE": Image.from_file(image)}
        case None, Path(), Path():
            return {"LEFT": Image.from_file(left), "RIGHT": Image.from_file(right)}
    raise InputError("a program runs on one image or on two", remedy="give --image FILE, or --left FILE and --right FILE")


def _run_batch(batch: Path, folder: Path, modules: dict[str, Module], out: str, cache: Path | None, window: int) -> None:
    from tutelage import storage
    from tutelage.programs.result_cache import ResultCache
    from tutelage.programs.run_context import RunContext
    from tutelage.programs.scheduler import stream

    started, statuses, unknown = time.perf_counter(), Counter[str](), 0
    notes = Counter[str]()
    ids: deque[str | int] = deque()
    total = _count_lines(batch)
    with ResultCache(cache) as results, progress(f"running {batch.name}", total) as bar:
        traces = stream(_jobs(batch, folder, modules, ids.append, notes), RunContext(modules, results, window=window))
        with _StandardOutput() if out == "-" else storage.atomic_write(out) as file:
            for trace in traces:
                file.write(_line(trace, ids.popleft()))
                statuses[trace.status] += 1
                unknown += trace.out_of_vocabulary
                bar.advance()
    summary = ", ".join(f"{number:,} {status}" for status, number in statuses.most_common()) or "no line"
    seconds = time.perf_counter() - started
    typer.echo(f"{statuses.total():,} programs in {seconds:.1f} s: {summary}; {unknown:,} calls out_of_vocabulary", err=True)
    for note, number in notes.most_common():
        typer.echo(f"{number:,} pictures read: {note}", err=True)


class _StandardOutput:
    """Standard output as a file of bytes."""

    def __enter__(self) -> BinaryIO:
        return sys.stdout.buffer

    def __exit__(self, *error: object) -> None:
        sys.stdout.buffer.flush()


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="check the path") from error


def _jobs(
    batch: Path, folder: Path, modules: dict[str, Module], on_id: Callable[[str | int], None], notes: Counter[str]
) -> Iterator[Job]:
    """A job a line; a line's id goes to ``on_id`` in the same order. What had to be done to pictures is counted in ``notes``.

    Raises:
        InputError: a line that is not JSON, or lacks a field; the message names file and line.
    """
    from tutelage import storage
    from tutelage.programs.lanes import to_failure
    from tutelage.programs.run_context import Job
    from tutelage.programs.types import ProgramFailure, RuntimeFailure
    from tutelage.programs.values import Image

    @lru_cache(maxsize=REREAD)
    def picture(path: Path) -> Image:
        image = Image.from_file(path)
        notes.update(image.notes)
        return image

    parser = lru_cache(maxsize=None)(lambda dsl: parser_of(dsl, modules))
    for number, row in storage.read_json_lines(batch):
        name, dsl, text, paths = _fields(row, f"{batch}:{number}")
        on_id(name)
        state = {}
        try:
            program = parser(dsl).try_parse(text, tuple(paths))
            if not isinstance(program, ProgramFailure):
                state = {view: picture(folder / path) for view, path in paths.items()}
        except InputError as error:
            program = RuntimeFailure(error.message, where=error.where, remedy=error.remedy)
        except Exception as error:  # whatever is wrong with one line, the others are answered
            program = to_failure(error, "reading the program and its pictures")
        yield Job(str(name), program, state)


def _fields(row: Any, where: str) -> tuple[str | int, Dsl, str, dict[str, str]]:
    """Id, language, program and picture paths of a line."""

    def check(held: bool, field: str, wanted: str) -> None:
        if not held:
            raise InputError(f'"{field}" is {wanted}', where=where, remedy=f"a line is {LINE}")

    if not isinstance(row, dict):
        raise InputError("not an object", where=where, remedy=f"a line is {LINE}")
    for field in ("id", "dsl", "program", "images"):
        check(field in row, field, "missing")
    check(isinstance(row["id"], (str, int)) and not isinstance(row["id"], bool), "id", "a text or a whole number")
    check(row["dsl"] in list(Dsl), "dsl", '"visprog" or "viper"')
    check(isinstance(row["program"], str), "program", "a text")
    paths = row["images"]
    check(isinstance(paths, dict) and set(paths) in (set(SINGLE), set(PAIR)), "images", "{IMAGE}, or {LEFT, RIGHT}")
    check(all(isinstance(path, str) for path in paths.values()), "images", "paths by name")
    inputs: Iterable[str] = SINGLE if len(paths) == 1 else PAIR
    return row["id"], Dsl(row["dsl"]), row["program"], {name: paths[name] for name in inputs}


def _line(trace: Trace, name: str | int) -> bytes:
    """The trace as a line of JSON under the id of its line. One that cannot be written becomes a failure."""
    from tutelage.programs.lanes import to_failure
    from tutelage.programs.serialization import strict_json

    try:
        return strict_json(trace.to_json() | {"id": name}) + b"\n"
    except Exception as error:
        failure = to_failure(error, "writing the trace")
        trace.status, trace.error = failure.kind, str(failure)
        row = {"id": name, "status": trace.status, "answer": None, "steps": [], "error": trace.error}
        return strict_json(row | {"fallback": trace.fallback, "out_of_vocabulary": 0}) + b"\n"
