"""The experiment behind each ``tutelage show SYSTEM``: one file a system, of the system's name.

A file defines ``experiment``, an :class:`Experiment`. :mod:`tutelage.experiments._runner` runs it over seeds and
gives the verdict.
"""

from __future__ import annotations

from tutelage.experiments._runner import (
    Claim,
    Experiment,
    Figure,
    Metric,
    better,
    count_shown,
    equal,
    load_experiment,
    names,
    not_worse,
    show,
)

__all__ = [
    "Claim",
    "Experiment",
    "Figure",
    "Metric",
    "better",
    "count_shown",
    "equal",
    "load_experiment",
    "names",
    "not_worse",
    "show",
]
