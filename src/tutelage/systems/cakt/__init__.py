"""CAKT: knowledge tracing with learning curves. The whole account is in ``network.py``."""

from __future__ import annotations

from tutelage.systems.cakt.answers import Answers, answer_data, pieces, read_answers, read_three_lines
from tutelage.systems.cakt.clips import clip_steps, decode, encode
from tutelage.systems.cakt.network import CAKT, DKT
from tutelage.systems.cakt.simulation import Simulated, simulated_answers, write_answers
from tutelage.systems.cakt.tracer import Tracer, fit, step_scores

__all__ = [
    "CAKT",
    "DKT",
    "Answers",
    "Simulated",
    "Tracer",
    "answer_data",
    "clip_steps",
    "decode",
    "encode",
    "fit",
    "pieces",
    "read_answers",
    "read_three_lines",
    "simulated_answers",
    "step_scores",
    "write_answers",
]
