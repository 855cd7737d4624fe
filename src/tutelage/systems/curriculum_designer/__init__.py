"""Curriculum designer: the order in which classes are taught one at a time, and what an order is worth
(Singh, Li, Sikarwar, Lei, Gao, Talbot, Sun, Shou, Kreiman, Zhang, 2022, arXiv 2211.15470)."""

from __future__ import annotations

from tutelage.systems.curriculum_designer.agreement import Merit, binned_distance, merit_of, merits, stable_share
from tutelage.systems.curriculum_designer.design import (
    ScoredOrder,
    all_orders,
    beam_orders,
    centrality,
    class_distances,
    normalized_rows,
    score_orders,
)
from tutelage.systems.curriculum_designer.learners import EWC, LEARNERS, SI, Learner, LwF, Naive, Replay
from tutelage.systems.curriculum_designer.online import ClassData, OnlineSettings, online_run
from tutelage.systems.curriculum_designer.tool import (
    CurriculumDesigner,
    EncoderSettings,
    encoded,
    read_distances,
    read_orders,
    write_distances,
    write_orders,
)

__all__ = [
    "EWC",
    "LEARNERS",
    "SI",
    "ClassData",
    "CurriculumDesigner",
    "EncoderSettings",
    "Learner",
    "LwF",
    "Merit",
    "Naive",
    "OnlineSettings",
    "Replay",
    "ScoredOrder",
    "all_orders",
    "beam_orders",
    "binned_distance",
    "centrality",
    "class_distances",
    "encoded",
    "merit_of",
    "merits",
    "normalized_rows",
    "online_run",
    "read_distances",
    "read_orders",
    "score_orders",
    "stable_share",
    "write_distances",
    "write_orders",
]
