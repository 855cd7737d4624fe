"""From a finished run to a page on disk: find its results, choose the report that reads them, write it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tutelage.errors import InputError
from tutelage.reports import comparison, continual, study
from tutelage.reports.page import load
from tutelage.storage import write_text


class ReportType(NamedTuple):
    """A kind of results: the file a run folder keeps them in, the ``format`` field, and the report that reads them."""

    file: str
    format: str
    report: Callable[[Path], str]


REPORT_TYPES = (
    ReportType(study.FILE, study.FORMAT, study.study_report),
    ReportType(comparison.FILE, comparison.FORMAT, comparison.comparison_report),
    ReportType(continual.FILE, continual.FORMAT, continual.continual_report),
)


def find_results(run: str | Path) -> Path:
    """The JSON of ``run``: itself if it is a file, else the results file that its folder holds.

    Raises:
        InputError: there is no such path, or the folder holds no results.
    """
    path = Path(run)
    if not path.is_dir():
        return path
    for kind in REPORT_TYPES:
        if (path / kind.file).exists():
            return path / kind.file
    names = " or ".join(kind.file for kind in REPORT_TYPES)
    raise InputError(f"no {names} in this folder", where=path, remedy="has the run finished?")


class WrittenReport(NamedTuple):
    """A page that was written: where, from which results of which format, and its size."""

    page: Path
    results: Path
    format: str
    bytes: int


def render_report(run: str | Path) -> tuple[str, Path, str]:
    """The page of ``run``, the JSON file it was read from, and the format of that.

    Raises:
        InputError: no results, or results that no report reads; the message names file and field.
    """
    path = find_results(run)
    data, _ = load(path, path.name)
    for kind in REPORT_TYPES:
        if data.get("format") == kind.format:
            return kind.report(path), path, kind.format
    formats = " or ".join(kind.format for kind in REPORT_TYPES)
    raise InputError(f"field format is {data.get('format')!r}, reports read {formats}", where=path, remedy="name the run's results")


def write_report(run: str | Path, out: str | Path | None = None) -> WrittenReport:
    """Write the page of ``run`` to ``out`` (default: ``report.html`` beside its JSON), whole or not at all.

    Raises:
        InputError: as :func:`render_report`.
        StorageError: ``out`` cannot be written.
    """
    text, path, format = render_report(run)
    page = write_text(out or path.with_name("report.html"), text)
    return WrittenReport(page, path, format, len(text.encode()))
