"""How `sdvp blame` shows what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.sdvp.attribution import ErrorAttribution


def show(screen: Any, attribution: ErrorAttribution) -> None:
    """The ranked table of modules, the table of question types, and the sum of it."""
    from rich.table import Table

    modules = Table(title=f"Whose step is wrong ({attribution.source} answers in its place, {attribution.dsl} programs)")
    for name in ("module", "question type"):
        modules.add_column(name)
    for name in ("wrong answers", "share of all errors", "recoverable points [95 %]"):
        modules.add_column(name, justify="right")
    for row in attribution.rows:
        recoverable = f"{row.recoverable:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
        modules.add_row(row.module, row.kind, f"{row.errors:.1f}", f"{row.error_share:.1%}", recoverable)
    screen.print(modules)
    kinds = Table(title="Wrong answers by fault")
    kinds.add_column("question type")
    for name in ("questions", "accuracy", "ceiling", "wrong", "modules", "program", "unresolved", "failed"):
        kinds.add_column(name, justify="right")
    for kind in attribution.kinds:
        counts = (kind.wrong, kind.modules, kind.program, kind.unresolved, kind.failed)
        kinds.add_row(kind.kind, str(kind.questions), f"{kind.accuracy:.1f}", f"{kind.ceiling:.1f}", *map(str, counts))
    screen.print(kinds)
    failed = ", ".join(f"{count} {kind}" for kind, count in attribution.failures.items()) or "none"
    screen.print(
        f"{attribution.questions} questions: {attribution.accuracy:.1f} % right, "
        f"{attribution.ceiling:.1f} % with every step answered by "
        f"{attribution.source}; {len(attribution.program_errors)} errors of program logic; programs that could not run: {failed}"
    )
