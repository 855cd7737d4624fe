"""A made-up comparison with the shape of a real one: every figure is drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np


def comparison(seed: int = 0) -> dict[str, Any]:
    """A whole comparison of a distillation."""
    rng = np.random.default_rng(seed)

    def result(mean: float, steps: int, seconds: float, spread: float = 0.5) -> dict[str, Any]:
        seeds = [round(mean + spread * float(z), 2) for z in rng.normal(size=5)]
        return {
            "mean": round(float(np.mean(seeds)), 2),
            "sd": round(float(np.std(seeds, ddof=1)), 2),
            "seeds": seeds,
            "steps": steps,
            "seconds": seconds,
        }

    def bins(slope: float) -> list[dict[str, float | None]]:
        middles = np.linspace(0.05, 0.95, 10)
        return [
            {
                "confidence": round(float(m), 3),
                "accuracy": round(float(0.5 + slope * (m - 0.5)), 3) if m > 0.2 else None,
                "share": 0.12 if m > 0.2 else 0.0,
            }
            for m in middles
        ]

    def curve(arm: str, end: float, pace: float) -> dict[str, Any]:
        points = [
            {"step": s, "seconds": s * pace, "mean": end - 30 * float(np.exp(-s / 160)), "sd": 0.4 + 60 / (s + 60)}
            for s in range(25, 601, 25)
        ]
        return {"arm": arm, "points": points}

    def term(name: str, weight: float, start: float, share: float) -> dict[str, Any]:
        points = [
            {"step": s, "value": start * float(np.exp(-s / 300)) + 0.2, "share": share + 0.05 * float(np.sin(s / 90))}
            for s in range(0, 601, 20)
        ]
        return {"name": name, "weight": weight, "points": points}

    return {
        "format": "tutelage-comparison",
        "version": 1,
        "method": "nd-loss",
        "command": "tutelage show nd-loss",
        "seeds": [0, 1, 2, 3, 4],
        "versions": {"tutelage": "0.1.0", "torch": "2.13.0"},
        "machine": "2 cores",
        "settings_hash": "77a0b1c2d3e4f501",
        "seconds": 142.0,
        "peak_rss_mib": 910.0,
        "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
        "summary": {
            "gain": 5.1,
            "gain_ci95": [4.4, 5.8],
            "gap_closed": 0.48,
            "equal_time_gain": 4.6,
            "equal_time_gain_ci95": [3.8, 5.4],
            "verdicts": [
                {
                    "claim": "Distilled without labels beats the few-label student",
                    "target": "≥ 4 points",
                    "value": 5.1,
                    "met": True,
                    "reason": "",
                }
            ],
        },
        "arms": [
            {
                "name": "student alone",
                "role": "student",
                "parameters": 6274,
                "about": "1,000 labels",
                "equal_steps": result(80.1, 600, 10.2),
                "equal_time": result(80.6, 790, 13.4),
                "speed": {"ms_per_step": 16.9, "samples_per_s": 3780, "peak_tensor_mib": 18.2},
                "calibration": {"ece": 0.081, "bins": bins(0.8)},
            },
            {
                "name": "distilled",
                "role": "distilled",
                "parameters": 6274,
                "equal_steps": result(85.2, 600, 13.4),
                "equal_time": result(85.2, 600, 13.4),
                "speed": {"ms_per_step": 22.4, "samples_per_s": 2860, "peak_tensor_mib": 18.4},
                "calibration": {"ece": 0.024, "bins": bins(0.97)},
            },
            {
                "name": "teacher",
                "role": "teacher",
                "parameters": 94218,
                "equal_steps": {"mean": 90.9, "sd": None},
                "equal_time": {"mean": 90.9, "sd": None},
                "speed": None,
                "calibration": {"ece": 0.031, "bins": bins(0.93)},
            },
        ],
        "curves": [curve("student alone", 80.1, 0.017), curve("distilled", 85.2, 0.0224)],
        "losses": {"arm": "distilled", "terms": [term("kl", 1.0, 1.6, 0.6), term("norm_direction", 2.0, 0.9, 0.35)]},
        "cache": {
            "entries": 60000,
            "bytes": 2.4e6,
            "hits": 38400,
            "misses": 0,
            "build_seconds": 8.1,
            "break_even_steps": 410,
            "fingerprint": "a81fe2",
        },
    }
