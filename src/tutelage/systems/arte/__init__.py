"""ARTE: a teacher is aligned with its student's preferences. The whole account is in ``tool.py``."""

from __future__ import annotations

from tutelage.systems.arte.items import ItemChoice, ItemModel, choose_items, fit_items
from tutelage.systems.arte.preferences import (
    PairSet,
    ScoredDraft,
    examinee_scores,
    question_pairs,
    question_scores,
    rationale_pairs,
    score_drafts,
)
from tutelage.systems.arte.prompts import (
    CUE,
    STYLES,
    Draft,
    Question,
    TaskText,
    one_shot_prompt,
    prompted_student,
    question_prompt,
    rationale_prompt,
    read_answer,
    read_questions,
)
from tutelage.systems.arte.tool import (
    ARTE,
    PUBLISHED,
    PUBLISHED_STUDENT,
    Preferences,
    find_preferences,
    response_data,
    tailored_set,
    without_leaks,
    write_questions,
    write_rationales,
)

__all__ = [
    "ARTE",
    "CUE",
    "PUBLISHED",
    "PUBLISHED_STUDENT",
    "STYLES",
    "Draft",
    "ItemChoice",
    "ItemModel",
    "PairSet",
    "Preferences",
    "Question",
    "ScoredDraft",
    "TaskText",
    "choose_items",
    "examinee_scores",
    "find_preferences",
    "fit_items",
    "one_shot_prompt",
    "prompted_student",
    "question_pairs",
    "question_prompt",
    "question_scores",
    "rationale_pairs",
    "rationale_prompt",
    "read_answer",
    "read_questions",
    "response_data",
    "score_drafts",
    "tailored_set",
    "without_leaks",
    "write_questions",
    "write_rationales",
]
