"""MIND: distillation of several rationales a question, weighted by what the student can take in
(Cui, Guo, Zhou, Yang, Lu, Xu, Song, Zhao, Ren, 2026, arXiv 2601.03717)."""

from __future__ import annotations

from tutelage.systems.mind.items import (
    PERSPECTIVES,
    Collection,
    Item,
    collect_rationales,
    drop_easy,
    exact_match,
    item_data,
    read_items,
    read_questions,
    write_items,
)
from tutelage.systems.mind.metanet import MetaNet, consistency, jensen_shannon, path_set, path_weights, ranking_loss
from tutelage.systems.mind.method import MIND

__all__ = [
    "MIND",
    "PERSPECTIVES",
    "Collection",
    "Item",
    "MetaNet",
    "collect_rationales",
    "consistency",
    "drop_easy",
    "exact_match",
    "item_data",
    "jensen_shannon",
    "path_set",
    "path_weights",
    "ranking_loss",
    "read_items",
    "read_questions",
    "write_items",
]
