"""Made-up results with the shape of real ones: every figure and picture here is drawn from a seed."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

TASKS = {
    "easy_vqa": ("current", "easy-VQA", 68.1, 76.9, 33.0),
    "b_gqa": ("current", "GQA layout, domain B", 60.4, 69.2, 41.0),
    "b_nlvr": ("current", "NLVR2 layout, domain B", 63.0, 71.8, 30.0),
    "a_attribute": ("previous", "Attributes, domain A", 90.4, 90.1, -21.0),
    "a_count": ("previous", "Counting, domain A", 91.8, 91.0, -24.5),
    "a_exist": ("previous", "Existence, domain A", 94.0, 93.9, -9.0),
    "b_spatial": ("unseen", "Spatial, domain B", 61.2, 66.0, -6.0),
    "b_pattern": ("unseen", "Pattern and size, domain B", 55.9, 57.6, -14.0),
    "b_digit": ("unseen", "Digits, domain B", 78.0, 77.3, -31.0),
    "c_mixed": ("unseen", "Domain C", 64.7, 64.9, -12.0),
}
STAGES = ["start", "easy_vqa", "b_gqa", "b_nlvr"]
COLOURS = {"red": "#d5402b", "green": "#3f9a4d", "blue": "#3766c8", "teal": "#2a9a94", "yellow": "#e2c13c"}


def uri(image: PIL.Image.Image) -> str:
    """A PNG data URI."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def scene(rng: np.random.Generator, colour: str) -> tuple[PIL.Image.Image, list[float]]:
    """A 48 x 48 picture with a circle of ``colour``, and the circle's box."""
    noise = rng.integers(195, 235, (48, 48, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(noise)
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((4, 30, 16, 42), fill=COLOURS["yellow"])
    draw.polygon([(30, 44), (44, 44), (37, 31)], fill=COLOURS["blue"])
    x, y = int(rng.integers(4, 26)), int(rng.integers(3, 12))
    draw.ellipse((x, y, x + 15, y + 15), fill=COLOURS[colour])
    return image, [float(x), float(y), x + 15.0, y + 15.0]


def sample(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """One sample of a colour question with four steps."""
    truth, mistaken = [str(c) for c in rng.permutation(list(COLOURS))[:2]]
    before_ok, after_ok = [(False, True), (False, True), (True, True), (False, False), (True, False)][n % 5]
    image, box = scene(rng, truth)
    x1, y1, x2, y2 = box
    crop = image.crop((int(x1 - 3), int(y1 - 3), int(x2 + 3), int(y2 + 3)))
    loose = [max(0, x1 - 6), max(0, y1 - 3), x2 + 2, y2 + 7, 0.41]

    def side(right: bool, p: float) -> dict[str, Any]:
        value, other = (truth, mistaken) if right else (mistaken, truth)
        return {"value": value, "dist": {value: p, other: 0.9 - p, "black": 0.06, "brown": 0.04}}

    program = [
        "BOX0=LOC(image=IMAGE,object='circle')",
        "IMAGE0=CROP(image=IMAGE,box=BOX0)",
        "ANSWER0=VQA(image=IMAGE0,question='What color is the circle?')",
        "FINAL_RESULT=RESULT(var=ANSWER0)",
    ]
    before, after = side(before_ok, 0.52), side(after_ok, 0.78)
    steps: list[dict[str, Any]] = [
        {
            "n": 0,
            "text": program[0],
            "module": "LOC",
            "image": "IMAGE",
            "boxes": [[*box, 0.87]],
            "before": {"value": "1 box", "boxes": [loose]},
            "after": {"value": "1 box"},
            "teacher": {"value": "1 box", "conf": 0.94, "boxes": [[x1 + 1, y1, x2 + 1, y2, 0.94]]},
            "gold": "1 box",
            "wrong": False,
        },
        {
            "n": 1,
            "text": program[1],
            "module": "CROP",
            "image": uri(crop),
            "boxes": [],
            "teacher": None,
            "gold": None,
            "wrong": False,
        },
        {
            "n": 2,
            "text": program[2],
            "module": "VQA",
            "image": uri(crop),
            "boxes": [],
            "before": before,
            "after": after,
            "teacher": {"value": truth, "dist": {truth: 0.93, mistaken: 0.05, "black": 0.02}, "conf": 0.93},
            "gold": truth,
            "wrong": not before_ok,
        },
        {
            "n": 3,
            "text": program[3],
            "module": "RESULT",
            "before": {"value": before["value"]},
            "after": {"value": after["value"]},
            "teacher": None,
            "gold": truth,
            "wrong": False,
        },
    ]
    return {
        "id": f"b{n:05d}",
        "task": "b_gqa" if n % 3 else "easy_vqa",
        "stage": "b_gqa",
        "question": "What color is the circle?",
        "gold": truth,
        "program": program,
        "images": {"IMAGE": uri(image)},
        "steps": steps,
        "arms": {
            "before": {"answer": before["value"], "correct": before_ok},
            "after": {"answer": after["value"], "correct": after_ok},
        },
    }


def cell(mean: float, sd: float | None = 0.6) -> dict[str, float | None]:
    """A cell of a table."""
    return {"mean": round(mean, 2), "sd": sd}


def study(samples: int = 10, seed: int = 0) -> dict[str, Any]:
    """A whole study."""
    rng = np.random.default_rng(seed)
    arms = []
    for task, (group, label, frozen, sdvp, naive_change) in TASKS.items():
        taught = group == "current"
        cells = {
            "frozen": cell(frozen),
            "replaced": cell(sdvp + 1.2 if taught else frozen * 0.4),
            "sdvp": cell(sdvp),
            "routed": cell(sdvp - 0.8 if taught else frozen + 0.6),
            "naive": cell(sdvp + 0.9 if taught else frozen + naive_change, 1.9),
            "teacher": cell(sdvp + 2.6, None) if taught else None,
            "gold": cell(100.0 if task != "b_nlvr" else 98.7, None),
        }
        gain = {
            "mean": round(sdvp - frozen, 2),
            "lo": round(sdvp - frozen - 1.1, 2),
            "hi": round(sdvp - frozen + 1.2, 2),
        }
        arms.append({"task": task, "label": label, "group": group, "n": 9000, "cells": cells, "gain": gain})

    def matrix(kept: float) -> list[list[float]]:
        rows = []
        for stage in range(4):
            row = []
            for j, (_, _, frozen, sdvp, lost) in enumerate(TASKS.values()):
                learned = (sdvp - frozen) * (1 if stage > j else 0.25 * stage) if j < 3 else (sdvp - frozen) * stage / 3
                row.append(round(frozen + learned + (0 if j < 3 else (lost - sdvp + frozen) * stage / 3 * (1 - kept)), 2))
            rows.append(row)
        return rows

    return {
        "format": "tutelage-study",
        "version": 1,
        "command": "tutelage sdvp study --seeds 3",
        "seeds": [0, 1, 2],
        "versions": {"tutelage": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "machine": "2 cores, one thread a process",
        "settings_hash": "1f0c9be24d7a3356",
        "seconds": 655.3,
        "peak_rss_mib": 1180.0,
        "summary": {
            "current_gain": 8.8,
            "current_gain_ci95": [8.1, 9.5],
            "gap_closed": 0.77,
            "previous_change": -0.4,
            "unseen_change": 1.5,
            "naive_forgetting": 18.2,
            "replaced_unseen_change": -39.0,
            "seeds": 3,
            "seconds": 655.3,
            "peak_rss_mib": 1180.0,
            "verdicts": [
                {
                    "claim": "Each current task gains, its interval above 0",
                    "target": "> 0",
                    "value": "3 of 3",
                    "met": True,
                    "reason": "",
                },
                {
                    "claim": "Mean gain on current tasks, points",
                    "target": "≥ 4.0",
                    "value": 8.8,
                    "met": True,
                    "reason": "",
                },
                {"claim": "Share of the gap closed", "target": "≥ 0.6", "value": 0.77, "met": True, "reason": ""},
                {
                    "claim": "Previous tasks lose at most 1 point",
                    "target": "≥ −1.0",
                    "value": -0.4,
                    "met": True,
                    "reason": "",
                },
                {
                    "claim": "Level with routing to the confident teacher",
                    "target": "≥ 0",
                    "value": -0.2,
                    "met": False,
                    "reason": "routing keeps the teachers at run time and pays their calls; the interval holds 0",
                },
            ],
        },
        "tables": {
            "arms": arms,
            "types": [
                {
                    "task": "b_gqa",
                    "type": t,
                    "cells": {a: cell(60 + 8 * rng.random()) for a in ("frozen", "naive", "sdvp")},
                }
                for t in ("query", "verify", "choose", "logical", "compare")
            ],
            "matrix": {"stages": STAGES, "tasks": list(TASKS), "sdvp": matrix(1.0), "naive": matrix(0.0)},
            "continual": {
                "sdvp": {"average": 75.9, "bwt": 0.3, "forgetting": 0.6, "unseen_delta": 1.5},
                "naive": {"average": 62.0, "bwt": -3.1, "forgetting": 18.2, "unseen_delta": -15.8},
            },
            "modules": [
                {
                    "module": "LOC",
                    "metric": "AP at IoU 0.5",
                    "cells": {"frozen": cell(0.61, 0.01), "sdvp": cell(0.74, 0.01), "teacher": cell(0.77, None)},
                },
                {
                    "module": "LOC",
                    "metric": "count error",
                    "cells": {"frozen": cell(0.52, 0.02), "sdvp": cell(0.31, 0.02), "teacher": None},
                },
                {
                    "module": "VQA",
                    "metric": "color, %",
                    "cells": {
                        "frozen": cell(58.2),
                        "naive": cell(69.9),
                        "sdvp": cell(69.0),
                        "teacher": cell(72.4, None),
                    },
                },
                {
                    "module": "VERIFY",
                    "metric": "AUC",
                    "cells": {"frozen": cell(0.71, 0.01), "sdvp": cell(0.83, 0.02), "teacher": cell(0.86, None)},
                },
            ],
            "health": [
                {
                    "arm": a,
                    "valid": 1.0,
                    "executed": 0.9987,
                    "fallback": 0.0,
                    "out_of_vocabulary": 0.012,
                    "calls_per_sample": 3.42,
                    "ms_per_sample": 0.61,
                    "failures": {"runtime": 12, "limit": 3},
                }
                for a in ("frozen", "routed", "sdvp")
            ],
            "lessons": [
                {
                    "stage": "b_gqa",
                    "module": "LOC",
                    "teacher": "loc-specialist",
                    "accepted": True,
                    "teacher_score": 77.0,
                    "student_score": 61.2,
                    "records": 6120,
                    "kept": 5011,
                    "guard": "passed",
                },
                {
                    "stage": "b_gqa",
                    "module": "VQA",
                    "teacher": "colour-specialist",
                    "accepted": True,
                    "teacher_score": 72.4,
                    "student_score": 58.2,
                    "records": 9321,
                    "kept": 6740,
                    "guard": {"action": "interpolated", "b": 0.8},
                },
                {
                    "stage": "b_nlvr",
                    "module": "VQA",
                    "teacher": "count-specialist",
                    "accepted": False,
                    "teacher_score": 40.2,
                    "student_score": 48.0,
                    "records": 2210,
                    "kept": 0,
                    "guard": None,
                },
            ],
        },
        "samples": [sample(rng, n) for n in range(samples)],
    }
