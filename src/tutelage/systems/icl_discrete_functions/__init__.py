"""In-context learning of discrete functions: whether a model learns a rule from the examples in its prompt
(Bhattamishra, Patel, Blunsom, Kanade, 2024, arXiv 2310.03016)."""

from __future__ import annotations

from tutelage.systems.icl_discrete_functions.baselines import (
    BASELINES,
    OPTIMAL,
    averaging,
    baselines_of,
    cosine_nearest,
    disjunction_elimination,
    elimination,
    nearest,
    null,
    parity_elimination,
    teaching_decoder,
)
from tutelage.systems.icl_discrete_functions.classes import (
    CLASSES,
    FunctionClass,
    Sequences,
    sample_sequences,
    teaching_sequence,
)
from tutelage.systems.icl_discrete_functions.curves import Curve, compare, correct, curve_of, draw_curves, predict, write_curves
from tutelage.systems.icl_discrete_functions.data import FunctionData
from tutelage.systems.icl_discrete_functions.language_models import (
    LanguageModelResult,
    ask_language_model,
    examples_prompt,
    read_label,
)
from tutelage.systems.icl_discrete_functions.networks import KINDS, PUBLISHED, InContextModel, PretrainedDecoder
from tutelage.systems.icl_discrete_functions.probes import (
    HeadScores,
    attention_maps,
    induction_scores,
    neighbour_scores,
    probe_attention,
)
from tutelage.systems.icl_discrete_functions.tool import InContextLearning

__all__ = [
    "BASELINES",
    "CLASSES",
    "KINDS",
    "OPTIMAL",
    "PUBLISHED",
    "Curve",
    "FunctionClass",
    "FunctionData",
    "HeadScores",
    "InContextLearning",
    "InContextModel",
    "LanguageModelResult",
    "PretrainedDecoder",
    "Sequences",
    "ask_language_model",
    "attention_maps",
    "averaging",
    "baselines_of",
    "compare",
    "correct",
    "cosine_nearest",
    "curve_of",
    "disjunction_elimination",
    "draw_curves",
    "elimination",
    "examples_prompt",
    "induction_scores",
    "nearest",
    "neighbour_scores",
    "null",
    "parity_elimination",
    "predict",
    "probe_attention",
    "read_label",
    "sample_sequences",
    "teaching_decoder",
    "teaching_sequence",
    "write_curves",
]
