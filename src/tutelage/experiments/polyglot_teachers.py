"""Polyglot teachers: which of six writers of training data makes the best student, language by language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tutelage.distillation.job import TrainingSettings
from tutelage.experiments import Experiment, Figure, Metric, better
from tutelage.systems.polyglot_teachers import Cell, PolyglotTeachers, TextModel, correlations, rank_teachers, tiny_text_model
from tutelage.systems.polyglot_teachers.rows import Row, TestItem, balanced_subsample, group_rows
from tutelage.systems.polyglot_teachers.toy_languages import (
    Writer,
    clean_rows,
    largest_chances,
    toy_items,
    toy_languages,
    toy_writers,
)

ACCURACY, RANKS = "accuracy of the chosen teacher's student on test cells, %", "Spearman with students' test accuracy"
ROWS, CLEAN = 300, 40
STUDENT = TrainingSettings(steps=400, batch_size=32, lr=2e-3, schedule="constant")


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """A student for each of 18 (teacher, language) cells; PGR is measured on validation cells, every arm on test cells."""
    languages, writers, count = toy_languages(seed), toy_writers(seed), 24 if smoke else ROWS
    settings = replace(STUDENT, seed=seed, steps=4 if smoke else STUDENT.steps)
    start = tiny_text_model([word for language in languages for word in language.words], seed)

    def clean(number: int, name: str) -> list[Row]:
        return [row for language in languages for row in clean_rows(language, number, seed, name)]

    base = start.tuned(clean(CLEAN, "base"), replace(settings, steps=4 if smoke else 60))
    fluency = start.tuned(clean(count, "fluency"), settings)
    places = [(writer, number, language) for writer in writers for number, language in enumerate(languages)]
    rows = [row for writer, number, language in places for row in writer.rows(language, number, count, seed)]
    by_name = {language.name: language for language in languages}
    tool = PolyglotTeachers(judge=lambda own: [by_name[row.language].judge(row) for row in own], fluency=fluency)
    cells, grouped = tool.measure(rows), group_rows(rows)
    items = {language.name: toy_items(language, seed) for language in languages}
    references = {name: base.tuned(clean_rows(by_name[name], count, seed, "reference"), settings) for name in by_name}
    found, tests = [], []
    sizes = {writer.name: writer.size for writer in writers}
    for cell in cells:
        own = grouped[cell.teacher, cell.language]
        kept = [own[i] for i in balanced_subsample([row.strategy for row in own], count)]
        student = base.tuned(kept, settings)
        validation, test = items[cell.language]
        scores = [100 * model.accuracy(validation) for model in (student, base, references[cell.language])]
        found.append(replace(cell, student=scores[0], base=scores[1], reference=scores[2], size=sizes[cell.teacher]))
        tests.append(100 * student.accuracy(test))
    return arms_of(writers, found, tests, items, references)


def arms_of(
    writers: Sequence[Writer],
    cells: Sequence[Cell],
    tests: Sequence[float],
    items: Mapping[str, tuple[list[TestItem], list[TestItem]]],
    references: Mapping[str, TextModel],
) -> dict[str, Figure]:
    """The figures of every way to choose a teacher, and of every measure."""
    ranking = rank_teachers(cells)
    accuracy = np.array(tests)
    measures = {
        "chosen by PG": [-np.inf if one.pg is None else one.pg for one in ranking.cells],
        "chosen by z": [one.z for one in ranking.cells],
        "best choice": tests,
    }
    languages = np.array([cell.language for cell in cells])
    arms: dict[str, Figure] = {}
    for name, values in measures.items():
        scores = np.array(values, np.float64)
        chosen = [np.flatnonzero(languages == one)[scores[languages == one].argmax()] for one in items]
        arms[name] = float(accuracy[chosen].mean())
    # sizes are drawn apart from all else: the largest writer's student is averaged over every draw, and owes nothing to luck
    chances = largest_chances()
    quality = {writer.name: writer.quality for writer in writers}
    arms["chosen by size"] = float(sum(chances[quality[c.teacher]] * a for c, a in zip(cells, tests, strict=True)) / len(items))
    arms["mean of all teachers"] = float(accuracy.mean())
    arms["reference"] = float(np.mean([100 * references[name].accuracy(items[name][1]) for name in items]))
    names = {"distinct_prompts": "distinctness of prompts", "distinct_responses": "distinctness of responses", "rubric": "judge"}
    for name, value in correlations(ranking.cells, tests).items():
        arms[names.get(name, name)] = {RANKS: value}
    arms.setdefault("PG", {RANKS: 0.0})  # where no reference is above its base, nothing is ranked
    return arms


experiment = Experiment(
    metric=ACCURACY,
    further_metrics=[Metric(RANKS)],
    claims=[
        better("chosen by PG", "chosen by size"),
        better("chosen by z", "mean of all teachers"),
        better("PG", "distinctness of prompts", metric=RANKS),
    ],
    run=run,
    limits="Made-up languages of 36 words, writers that are no language models, students of one block. By construction size says "
    "nothing of quality (its label is drawn; 'chosen by size' is the mean over all draws), and no writer is the best in every "
    "language; z has a judge and a fluency model that know the languages. PG holds the student's validation score: test cells are "
    "others, and z stands beside it. The paper's own comparison (mean PG of gemma-3-27b 0.73, aya-expanse-32b 0.71, Llama-3.1-70B "
    "0.14, Llama-3.1-8B -0.36; size not predictive) is of real models, and nothing here follows for them.",
)
