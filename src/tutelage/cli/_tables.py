"""What `run` and `solve` print: a trace as a table, the answer, and the same as JSON and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tutelage.terminal import console, emit

if TYPE_CHECKING:
    from tutelage.programs.run_context import Job
    from tutelage.programs.trace import StepRecord, Trace
    from tutelage.programs.types import Module, Program, ProgramFailure, Value

MAX_WIDTH = 60
"""Characters of a value or a call in a table."""


def run_and_print(
    job: Job,
    modules: dict[str, Module],
    json: str | None,
    cache: Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Run one program and print its trace, as :func:`print_trace` does.

    Raises:
        StaleError, StorageError: the file of the result cache is not one, or cannot be written.
    """
    from tutelage.programs.result_cache import ResultCache
    from tutelage.programs.run_context import RunContext
    from tutelage.programs.scheduler import run

    with ResultCache(cache) as results:
        (trace,) = run([job], RunContext(modules, results))
    print_trace(job, trace, json, extra)


def print_trace(job: Job, trace: Trace, json: str | None, extra: Mapping[str, Any] | None = None, html: Path | None = None) -> None:
    """Print every step and the answer of one run; write its trace as JSON, together with ``extra``, and as ``html``.

    The command leaves with 1 if the program failed.
    """
    screen = console(json)
    for name, value in job.state.items():
        for note in getattr(value, "notes", ()):
            screen.print(f"{name}: {note}", markup=False)
    if trace.steps:
        screen.print(_table(job.program, trace))
    confidence = trace.confidence
    emit(trace.to_json() | {"confidence": confidence} | dict(extra or {}), json)
    if html is not None:
        _write_html(html, job, trace, str((extra or {}).get("models", "")))
        screen.print(f"HTML: {html}", markup=False, soft_wrap=True)
    if trace.status != "ok":
        typer.echo(f"error: the program fails ({trace.status}): {trace.error}", err=True)
        raise typer.Exit(1)
    notes = [] if confidence is None else [f"confidence {confidence:.2f}, the product over its steps"]
    notes += [f"step {record.step + 1}, {record.module}, is a fallback: there was no box" for record in trace.fallback_steps]
    if trace.out_of_vocabulary:
        notes.append(f"{trace.out_of_vocabulary} calls use words that their module does not know")
    screen.print(f"answer: {format_value(trace.answer)}" + "".join(f"\n{note}" for note in notes), markup=False, soft_wrap=True)


def _write_html(file: Path, job: Job, trace: Trace, models: str) -> None:
    from tutelage import __version__
    from tutelage.programs.values import Image
    from tutelage.reports.trace import FORMAT, VERSION, trace_report
    from tutelage.storage import write_text

    roots = {value.root_key: Image(value.root, value.root_key) for value in job.state.values() if isinstance(value, Image)}
    images = [
        {"key": key, "width": image.width, "height": image.height, "src": image.data_uri(1024)} for key, image in roots.items()
    ]
    fields = {"format": FORMAT, "version": VERSION, "question": job.question or "A program", "models": models}
    fields |= {"program": getattr(job.program, "text", ""), "versions": {"tutelage": __version__}}
    write_text(file, trace_report(fields | {"images": images, "trace": trace.to_json()}))


def format_value(value: Value) -> str:
    """A value in few words."""
    from tutelage.programs.values import Box, Image, Object

    if isinstance(value, Image):
        return f"image {value.width}x{value.height} at ({value.region[0]}, {value.region[1]})"
    if isinstance(value, Box):
        return f"({value.x1:.0f}, {value.y1:.0f}, {value.x2:.0f}, {value.y2:.0f}) {value.score:.2f}"
    if isinstance(value, Object):
        return f"{value.class_name or value.category} {format_value(value.box)}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value[:2]))}" + (f", … {len(value)} in all]" if len(value) > 2 else "]")
    return _cut(f"{value:.4g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value))


def _table(program: Program | ProgramFailure, trace: Trace) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "call", "answer")
    table.add_column("probability", justify="right")
    table.add_column("ms", justify="right")
    for record in trace.steps:
        result = record.error or format_value(record.output)
        marks = (" (unknown words)" if record.out_of_vocabulary else "") + (" (fallback: no box)" if record.is_fallback else "")
        table.add_row(
            str(record.step + 1) if record.step >= 0 else "–",
            Text(_call(program, record)),
            Text(_cut(result) + marks),
            "" if record.probability is None else f"{record.probability:.2f}",
            f"{record.ms:.1f}",
        )
    return table


def _call(program: Program | ProgramFailure, record: StepRecord) -> str:
    """The line of a VisProg program, or the call with its values."""
    lines = getattr(program, "steps", None)
    if lines is not None and 0 <= record.step < len(lines):
        return str(lines[record.step])
    return f"{record.module}({', '.join(f'{name}={format_value(value)}' for name, value in record.args.items())})"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 1]}…"
