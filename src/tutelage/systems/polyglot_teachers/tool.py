r"""Polyglot teachers: which language model writes the best training data, language by language.

```python
from tutelage.systems.polyglot_teachers import ModelJudge, PolyglotTeachers, read_rows, transformers_text_model

tool = PolyglotTeachers(judge=ModelJudge(endpoint), fluency=transformers_text_model("Qwen/Qwen2.5-0.5B"))
print(tool.rank(read_rows("rows.jsonl")).teachers)  # by z: no student is trained
```

On the command line, each step reads and writes plain files (JSON lines and CSV); the last three run on any machine:

```sh
tutelage polyglot synthesize seeds.jsonl --language German --count 3000 --out rows/gemma-de.jsonl \
  --set endpoint.url=https://host/v1 --set endpoint.model=gemma-3-27b-it --set endpoint.top_p=0.9
tutelage polyglot measure rows/*.jsonl --fluency Qwen/Qwen2.5-0.5B --out table.csv \
  --set endpoint.url=https://host/v1 --set endpoint.model=judge
tutelage polyglot students table.csv rows/*.jsonl --base BASE --reference REFERENCE --test test.jsonl --out scored.csv
tutelage polyglot rank scored.csv --out ranking.csv --picture ranking.svg
```

Source: "Polyglot Teachers: Evaluating Language Models for Multilingual Synthetic Data Generation" (Miranda, Vulić, Korhonen,
2026, arXiv 2604.11290).

**Rows.** A teacher writes data by three strategies in equal shares: `generate` (three examples; it writes prompt and response),
`translate` (an English prompt, translated and answered), `respond` (to a prompt of the language). Answers that are cut, empty or
unreadable are rejected and counted; answers are cached, so that no request is sent twice.

**Without a student**: on a subsample with equal shares of strategies, the distinctness of prompts and of responses,
`d = 1 - mean over i != j of cos(e_i, e_j)`; the perplexity of each response given its prompt, by a fluency model; and the
mean score, 1 to 5, of a judge. With columns standardised over all cells (a cell is one teacher in one language),
`z = mean of [d_prompt, d_response, rubric, -log(1 + perplexity)]`.

**With a student** trained on each cell: `PGR = (student - base) / (reference - base)` and `PG = (z + PGR) / 2`. Teachers are
ranked by their mean over languages, with a t-interval over languages.

**Use in SDVP**: rank candidate teachers of a module, or program generators, by z before any student is trained.

**What differs from the reference implementation, and why.**

- A PGR whose reference is not above its base is not valid: it would reward worse students. Such cells have no PG, and are
  listed. The gain, student less base, stands beside PG.
- Perplexity is taken row by row over the response's own tokens; padding and prompts do not count.
- A judge's answer without a score is left out of the mean and counted; `missing_score=1` counts it as 1, as published.
- z depends on the cells of a table: its scaler is stored, and given to a later table where scores are to be compared.

**Limits.** PG contains the student's own result: a correlation of PG with the same result says little, so z stands beside it.
z needs a judge and a fluency model that know the language. Default embeddings are hashed words; give a sentence encoder for
meaning. The published findings (Gemma 3 27B and Aya Expanse 32B good throughout, size not predictive, 93.3 % of the variance
in four components) are about models of 1 to 70 billion parameters, and are not reproduced here. `students` scores one kind of
question (a choice, or an exact answer) and holds a cell's rows in memory, padded to the longest; scores of other evaluations can
be written into the table by hand. Ablations by strategy, amount of data or family of the student are runs on parts of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tutelage.distillation.job import TrainingSettings
from tutelage.errors import InputError
from tutelage.programs.generators.embedding import Embed, hashed_words
from tutelage.registry import system
from tutelage.storage import RunFolder, fingerprint, read_json, to_plain, write_json
from tutelage.systems.polyglot_teachers.metrics import Judge, distinctness, mean_score
from tutelage.systems.polyglot_teachers.rows import Row, TestItem, balanced_subsample, by_language, group_rows
from tutelage.systems.polyglot_teachers.scores import Cell, Ranking, Scaler, rank_teachers
from tutelage.systems.polyglot_teachers.text_model import PUBLISHED, TextModel, tiny_text_model
from tutelage.systems.polyglot_teachers.toy_languages import clean_rows, toy_items, toy_languages, toy_writers

Perplexities = Callable[[Sequence[Row]], Sequence[float]]
"""The perplexity of each row's response given its prompt."""
_BLOCK = 1024  # texts that are embedded at once


@system("polyglot-teachers", kind="language")
class PolyglotTeachers:
    """Which language model is the best teacher of a language: the quality of its data, and the gain of its students.

    Args:
        judge: scores rows 1 to 5, such as ``ModelJudge(endpoint)``, or any function of rows.
        fluency: a language model that knows the languages, or a function from rows to perplexities.
        embed: texts -> array [n, d]; None: hashed words.
        config: see the options.
    """

    @dataclass(frozen=True)
    class Config:
        """``sample``: rows of a cell that are measured; ``student_sample``: rows that its student is trained on; ``seed``:
        of both subsamples; ``missing_score``: what a row counts as for which the judge gave no score, None: left out."""

        sample: int = 10_000
        student_sample: int = 10_500
        seed: int = 42
        missing_score: float | None = None

        def __post_init__(self) -> None:
            if self.sample < 2 or self.student_sample < 1:
                raise InputError(f"samples of {self.sample} and {self.student_sample} rows", where="sample", remedy="2 or more")

    def __init__(
        self, *, judge: Judge, fluency: TextModel | Perplexities, embed: Embed | None = None, config: Config | None = None
    ):
        self.judge, self.embed, self.config = judge, embed, config or self.Config()
        self.perplexities = fluency.perplexities if isinstance(fluency, TextModel) else fluency
        self.count_tokens = (lambda text: len(fluency.encode(text))) if isinstance(fluency, TextModel) else _words
        self.unscored: dict[tuple[str, str], int] = {}
        """By cell, rows without a score of the judge, of the last call of :meth:`measure`."""

    def measure(self, rows: Sequence[Row], on_cell: Callable[[float, float], object] | None = None) -> list[Cell]:
        """The intrinsic measures of every (teacher, language) cell.

        Raises:
            InputError: a cell of fewer than two rows, or one that the judge scores nowhere.
        """
        cells, grouped = list[Cell](), group_rows(rows)
        self.unscored = {}
        if not grouped:
            raise InputError("no row", where="rows", remedy="give rows of at least one teacher")
        for number, ((teacher, language), every) in enumerate(grouped.items(), 1):
            where = f"{teacher} in {language}"
            kept = [every[i] for i in balanced_subsample([row.strategy for row in every], self.config.sample, self.config.seed)]
            if len(kept) < 2:
                raise InputError("one row has no distinctness", where=where, remedy="give two rows or more for each cell")
            scores = self.judge(kept)
            perplexities = self.perplexities(kept)
            if len(scores) != len(kept) or len(perplexities) != len(kept):
                message = f"{len(scores)} scores and {len(perplexities)} perplexities for {len(kept)} rows"
                raise InputError(message, where=where, remedy="judge and fluency give one number a row, in order")
            rubric, self.unscored[teacher, language] = mean_score(scores, self.config.missing_score, where)
            prompts, responses = [row.prompt for row in kept], [row.response for row in kept]
            cells.append(
                Cell(
                    teacher,
                    language,
                    self._distinctness(prompts),
                    self._distinctness(responses),
                    rubric,
                    float(np.mean(perplexities)),
                    float(np.mean([self.count_tokens(text) for text in prompts])),
                    float(np.mean([self.count_tokens(text) for text in responses])),
                )
            )
            if on_cell is not None:
                on_cell(number, len(grouped))
        return cells

    def rank(self, rows: Sequence[Row], scaler: Scaler | None = None) -> Ranking:
        """The ranking by z of the teachers who wrote ``rows``; no student is trained."""
        return rank_teachers(self.measure(rows), scaler)

    def _distinctness(self, texts: list[str]) -> float:
        embed = self.embed or hashed_words(texts)
        return distinctness(embed(texts[start : start + _BLOCK]) for start in range(0, len(texts), _BLOCK))

    @classmethod
    def tiny_run(cls, seed: int) -> dict[str, float | str]:
        """Three writers of one made-up language, a tiny fluency model, and a tiny student of each."""
        (language,), writers = toy_languages(seed, 1), toy_writers(seed)[::2]
        rows = [row for writer in writers for row in writer.rows(language, 0, 48, seed)]
        start = tiny_text_model(language.words, seed, dim=16)
        brief = TrainingSettings(steps=8, batch_size=16, lr=3e-3, seed=seed)
        reference = start.tuned(clean_rows(language, 64, seed), replace(brief, steps=60, lr=1e-2))
        tool = cls(judge=lambda own: [language.judge(row) for row in own], fluency=reference)
        cells = train_students(tool.measure(rows), rows, start, reference, toy_items(language, seed)[0], brief)
        found = rank_teachers(cells)
        return {"first": found.teachers[0].teacher if found.teachers else "none", "ranked by": found.by} | {
            f"z of {one.cell.teacher}": one.z for one in found.cells
        }


def _words(text: str) -> int:
    return len(text.split())


def train_students(
    cells: Sequence[Cell],
    rows: Sequence[Row],
    base: TextModel,
    reference: TextModel,
    items: Sequence[TestItem],
    settings: TrainingSettings = PUBLISHED,
    *,
    sample: int = 10_500,
    seed: int = 42,
    out: str | Path | None = None,
    identity: Mapping[str, object] | None = None,
    on_cell: Callable[[float, float], object] | None = None,
) -> list[Cell]:
    """Train one student a cell from ``base``, and score it, the base and the reference on the items of its language.

    The reference should be of the same family as the base: it is what 100 % of the gap is.

    Args:
        cells: as :meth:`PolyglotTeachers.measure` gives them.
        rows: the data of all cells.
        base: what every student starts from; it stays as it is.
        reference: the model that a student should come near to.
        items: scored in percent of right answers.
        settings: of the training; the default is the published one.
        sample, seed: of the balanced subsample of rows.
        out: a folder where each score is kept, so that the same call goes on after an interruption.
        identity: names base, reference and items for ``out``: another call must not go on with this one's scores.
        on_cell: called with (done, total).

    Raises:
        InputError: a cell without rows, or a language without items.
        StaleError: ``out`` holds a run of other settings.
    """
    grouped, questions = group_rows(rows), by_language(items)
    anchors: dict[str, tuple[float, float]] = {}
    parts = {"settings": settings, "sample": sample, "seed": seed, "items": fingerprint([to_plain(item) for item in items])}
    folder = None if out is None else RunFolder(out, parts | dict(identity or {}))
    found = []
    for cell in cells:
        if (cell.teacher, cell.language) not in grouped:
            remedy = "give the files that the table was measured on"
            raise InputError(f"no row of {cell.teacher!r} in {cell.language!r}", where="rows", remedy=remedy)
        if cell.language not in questions:
            raise InputError(f"no question in {cell.language!r}", where="test items", remedy="add some, or leave the language out")
    for number, cell in enumerate(cells, 1):
        own, tests = grouped[cell.teacher, cell.language], questions[cell.language]
        if cell.language not in anchors:
            anchors[cell.language] = 100 * base.accuracy(tests), 100 * reference.accuracy(tests)
        kept = [own[i] for i in balanced_subsample([row.strategy for row in own], sample, seed)]
        name = f"student-{fingerprint(cell.teacher, cell.language, [to_plain(row) for row in kept])}.json"
        done = None if folder is None else folder.done(name)
        score = 100 * base.tuned(kept, settings).accuracy(tests) if done is None else float(read_json(done)["score"])
        if folder is not None and done is None:
            write_json(folder.root / name, {"teacher": cell.teacher, "language": cell.language, "score": score})
        low, high = anchors[cell.language]
        found.append(replace(cell, student=score, base=low, reference=high))
        if on_cell is not None:
            on_cell(number, len(cells))
    return found
