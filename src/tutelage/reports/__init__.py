"""Self-contained HTML pages from results: they read JSON, load nothing from the network, and run no model."""

from __future__ import annotations

from tutelage.reports.comparison import comparison_report
from tutelage.reports.report import render_report, write_report
from tutelage.reports.study import study_report

__all__ = ["comparison_report", "render_report", "study_report", "write_report"]
