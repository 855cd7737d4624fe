"""Polyglot teachers: synthetic data of several teachers, its quality, students, the PG score and rankings
(Miranda, Vulić, Korhonen, 2026, arXiv 2604.11290)."""

from __future__ import annotations

from tutelage.systems.polyglot_teachers.analysis import explain, principal_components
from tutelage.systems.polyglot_teachers.embeddings import transformers_embedding
from tutelage.systems.polyglot_teachers.metrics import (
    ModelJudge,
    distinctness,
    mean_score,
    parse_score,
    response_perplexities,
)
from tutelage.systems.polyglot_teachers.rows import (
    STRATEGIES,
    Row,
    SeedPrompt,
    TestItem,
    balanced_subsample,
    read_rows,
    read_seeds,
    read_test_items,
    write_rows,
)
from tutelage.systems.polyglot_teachers.scores import (
    Cell,
    Ranking,
    Scaler,
    correlations,
    performance_gap_recovered,
    polyglot_score,
    rank_teachers,
    read_table,
    write_table,
)
from tutelage.systems.polyglot_teachers.synthesis import Synthesis, synthesize
from tutelage.systems.polyglot_teachers.text_model import (
    PUBLISHED,
    TextModel,
    tiny_text_model,
    transformers_text_model,
)
from tutelage.systems.polyglot_teachers.tool import PolyglotTeachers, train_students

__all__ = [
    "PUBLISHED",
    "STRATEGIES",
    "Cell",
    "ModelJudge",
    "PolyglotTeachers",
    "Ranking",
    "Row",
    "Scaler",
    "SeedPrompt",
    "Synthesis",
    "TestItem",
    "TextModel",
    "balanced_subsample",
    "correlations",
    "distinctness",
    "explain",
    "mean_score",
    "parse_score",
    "performance_gap_recovered",
    "polyglot_score",
    "principal_components",
    "rank_teachers",
    "read_rows",
    "read_seeds",
    "read_table",
    "read_test_items",
    "response_perplexities",
    "synthesize",
    "tiny_text_model",
    "train_students",
    "transformers_embedding",
    "transformers_text_model",
    "write_rows",
    "write_table",
]
