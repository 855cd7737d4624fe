"""The page of one answered question: the photo, the program, every step with what it looked at and found, the answer.

The input is one JSON object::

    format "tutelage-trace", version 1, question, models (which set answered, in words), program (its text)
    images [{key, width, height, src (a data: URI)}]
    trace  what Trace.to_json gives: status, answer, error, steps [{step, module, module_version, args, output,
           output_dist, out_of_vocabulary, ms, error}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.reports.page import check_format, reads_results, render, replace_nan, require_field

FORMAT, VERSION = "tutelage-trace", 1


@reads_results
def trace_report(data: Mapping[str, Any]) -> str:
    """The page, as one self-contained HTML text.

    Raises:
        InputError: a field is missing or of another type; the message names it.
    """
    data, where = replace_nan(data), "trace"
    check_format(data, FORMAT, VERSION, where)
    images = {image["key"]: image for image in require_field(data, "images", list, where)}
    steps = [_step(step, images) for step in require_field(data, "trace.steps", list, where)]
    for field in ("question", "models", "program"):
        require_field(data, field, str, where)
    return render(
        "trace.html", where, data=data, trace=data["trace"], images=list(images.values()), steps=steps, shown=_format_value
    )


def _step(step: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """A step as the page shows it: its view of a photo, if it has one, and boxes in that photo's pixels."""
    args, output = step.get("args") or {}, step.get("output")
    seen = next((value for value in args.values() if _is_image(value)), None)
    boxes = _boxes(output) or [box for value in args.values() for box in _boxes(value)]
    view = None
    if seen is not None and seen["image"] in images:
        x, y = seen["region"][:2]
        cut = output["region"] if isinstance(output, Mapping) and output.get("image") == seen["image"] else None
        rows = [(x + x1, y + y1, x2 - x1, y2 - y1, score) for x1, y1, x2, y2, score in boxes]
        left, top, right, bottom = seen["region"]
        view = {"key": seen["image"], "at": (left, top, right - left, bottom - top), "boxes": rows, "cut": cut}
    words = {name: _format_value(value) for name, value in args.items() if not _is_image(value) and name != "values"}
    return {**step, "view": view, "words": words, "said": _format_value(output)}


def _is_image(value: Any) -> bool:
    return isinstance(value, Mapping) and "image" in value and "region" in value


def _boxes(value: Any) -> Sequence[Sequence[float]]:
    """The boxes of a list of them, as traces write it."""
    rows = value.get("list") if isinstance(value, Mapping) else value
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, list) and len(row) == 5 and all(isinstance(n, (int, float)) for n in row)]


def _format_value(value: Any) -> str:
    """A value of a trace in few words."""
    if value == []:
        return "nothing found"
    boxes = _boxes(value)
    if boxes:
        return f"{len(boxes)} found, the best at {boxes[0][4]:.2f}"
    if _is_image(value):
        left, top, right, bottom = value["region"]
        return f"{right - left} × {bottom - top} pixels"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
