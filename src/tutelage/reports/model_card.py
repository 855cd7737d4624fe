"""The model card of a distilled module, written from plain facts: what it is, its teachers, its data, figures, limits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2

from tutelage.errors import InputError

PIPELINES = {
    "VQA": "visual-question-answering",
    "LOC": "zero-shot-object-detection",
    "MATCH": "zero-shot-image-classification",
    "VERIFY": "zero-shot-image-classification",
    "SCORE": "zero-shot-image-classification",
    "SEG": "image-segmentation",
    "DEPTH": "depth-estimation",
}
"""The hub's names of what modules do."""
REQUIRED_FACTS = ("title", "what", "library", "module", "lessons", "figures", "limits", "run")


def card(facts: Mapping[str, Any]) -> str:
    """A model card in Markdown, its front matter valid YAML (scalars are written as JSON, which YAML reads).

    ``facts``: ``title, what, library, module {name, class, args, returns, heads, parameters, version, settings}, lessons,
    figures {columns, rows} or None, limits, run {command, facts}`` and, where known, ``license, base_model``.

    Raises:
        InputError: a fact is missing.
    """
    for name in REQUIRED_FACTS:
        if name not in facts:
            raise InputError(f"the fact {name!r} is missing", where="card", remedy="tutelage.sdvp.export gathers them")
    given = {"license": None, "base_model": None, "labelled_teachers": False, "figures_of": "", **facts}
    given["pipeline"] = PIPELINES.get(facts["module"]["name"])
    given["tags"] = ["tutelage", "sdvp", "knowledge-distillation", "visual-programming", facts["module"]["name"].lower()]
    return _environment().get_template("card.md").render(given).rstrip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    """Templates in Markdown: nothing undefined."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("tutelage.reports"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["cell"] = cell
    return env


def cell(value: Any) -> str:
    """A value in a cell of a Markdown table, on one line."""
    if value is None or value != value:  # NaN: not measured
        return "–"
    text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
