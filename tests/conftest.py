"""One thread a process, a cache of trained modules apart from the user's, and no silent skip of the browser test."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TUTELAGE_HOME", str(Path(__file__).parents[1] / ".pytest_cache" / "tutelage"))

settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In continuous integration (``REQUIRE_BROWSER=1``) a skipped browser test is a failure."""
    if report.skipped and report.nodeid.startswith("tests/browser") and os.environ.get("REQUIRE_BROWSER"):
        report.outcome = "failed"
        report.longrepr = f"the browser test was skipped, and REQUIRE_BROWSER is set: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
