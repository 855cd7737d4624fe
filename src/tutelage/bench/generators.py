"""Program writers on questions that none of them was made from: the grammar's rules, and the learned writer."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

from tutelage import storage
from tutelage.programs.generators.base import ProgramGenerator, grammar_generator
from tutelage.sdvp.learned_generator.evaluation import evaluation_sets, exact_match, unknown_words
from tutelage.sdvp.learned_generator.generator import LearnedGenerator
from tutelage.sdvp.learned_generator.training import QUICK, GeneratorTraining, learned_generator

FIGURES = ("exact", "written", "declined", "refused", "unknown")


def bench(
    seeds: list[int], *, smoke: bool = False, progress: Callable[[float, float], object] = lambda done, total: None
) -> dict[str, Any]:
    """``{rows, by_seed, smoke}``: a row for each set of questions and writer, its figures (shares, see
    :func:`~tutelage.sdvp.learned_generator.evaluation.exact_match`) as {mean, sd} over ``seeds``, null where
    a set has none. ``smoke``: a
    writer that has learned nothing."""
    config = QUICK if smoke else GeneratorTraining()
    by_seed: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds):
        progress(number, len(seeds))
        generator = learned_generator(seed, storage.ContentStore(storage.cache_home() / "writers"), config=config)
        writers: dict[str, Callable[[bool], ProgramGenerator]] = {
            "grammar": grammar_generator,
            "learned": _generator_for(generator),
        }
        for name, book in evaluation_sets(seed, config).items():
            for writer, of in writers.items():
                found = exact_match(of, book) | ({"unknown": unknown_words(generator, book)} if writer == "learned" else {})
                by_seed.append({"seed": seed, "set": name, "writer": writer, "questions": len(book), **found})
    progress(len(seeds), len(seeds))
    rows = []
    for name, writer in dict.fromkeys((it["set"], it["writer"]) for it in by_seed):
        rows_of_set = [it for it in by_seed if (it["set"], it["writer"]) == (name, writer)]
        row: dict[str, Any] = {"set": name, "writer": writer, "questions": mean(it["questions"] for it in rows_of_set)}
        for figure in FIGURES:
            values = [it[figure] for it in rows_of_set if figure in it]
            row[figure] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0} if values else None
        rows.append(row)
    return {"rows": rows, "by_seed": by_seed, "smoke": smoke}


def _generator_for(writer: LearnedGenerator) -> Callable[[bool], ProgramGenerator]:
    return lambda single: LearnedGenerator(writer.codes, writer.network, single, writer.min_probability)
