"""Whether a language model learns a function from the examples in its prompt, beside what simple learners reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.programs.generators.completions import (
    Completion,
    CompletionCache,
    CompletionRequest,
    LanguageModel,
    Usage,
    complete_all,
)
from tutelage.programs.generators.few_shot import Prompt
from tutelage.seeds import numpy_rng
from tutelage.systems.icl_discrete_functions.baselines import Baseline, baselines_of
from tutelage.systems.icl_discrete_functions.curves import Curve, correct, curve_of
from tutelage.systems.icl_discrete_functions.data import FunctionData

RULES = "Each input has a label, 0 or 1, by one rule. Answer with the label of the last input: 0 or 1, and nothing else."


class ExamplesPrompt(Prompt):
    """A prompt of examples; models that go on with a text see the examples alone."""

    @property
    def text(self) -> str:
        """The examples, the last label open."""
        return self.turns[0]


def examples_prompt(xs: np.ndarray, ys: np.ndarray) -> ExamplesPrompt:
    """The prompt of inputs [t + 1, n] in {-1, +1} and the labels [t] of all but the last.

    Examples:
        >>> print(examples_prompt(np.array([[-1, 1], [1, 1]]), np.array([1])).text)
        Input: 0 1
        Label: 1
        <BLANKLINE>
        Input: 1 1
        Label:
    """
    lines = [f"Input: {' '.join('1' if one > 0 else '0' for one in row)}" for row in xs]
    labels = [*(f"Label: {1 if label > 0 else 0}" for label in ys[: len(xs) - 1]), "Label:"]
    return ExamplesPrompt(RULES, ("\n\n".join(f"{line}\n{label}" for line, label in zip(lines, labels, strict=True)),))


def read_label(answer: str) -> float | None:
    """+1 or -1 where the answer begins with 1 or 0 (``Label:`` may stand before it), else None."""
    words = answer.strip().removeprefix("Label:").split()
    first = words[0].rstrip(".,;:") if words else ""
    return {"1": 1.0, "0": -1.0}.get(first)


@dataclass(frozen=True)
class LanguageModelResult:
    """What a language model reached.

    Attributes:
        curves: of the model (first) and of the learners, at the same queries.
        guessed: answers that were neither 0 nor 1, or did not come: a random guess stands for each.
        failed: of these, how many did not come.
        asked: all queries.
        predictions: [functions, counts] of the model.
    """

    curves: list[Curve]
    guessed: int
    failed: int
    asked: int
    predictions: np.ndarray


def ask_language_model(
    model: LanguageModel,
    function: str = "conjunction",
    *,
    size: int = 5,
    counts: Sequence[int] = (5, 10, 15, 20),
    functions: int = 50,
    density: float | None = 0.5,
    teaching: float = 0.0,
    learners: dict[str, Baseline] | None = None,
    seed: int = 0,
    cache: CompletionCache | None = None,
    usage: Usage | None = None,
    on_progress: Callable[[float, float], object] | None = None,
) -> LanguageModelResult:
    """Ask a model for the label of one more input after so many examples, for fresh functions.

    Args:
        model: what answers; greedy.
        function: the class.
        size: n; the paper has at most 7.
        counts: numbers of examples, each a query of every function.
        functions: how many.
        density: share of weights that are not 0; None: as the class says.
        teaching: the share of sequences that begin with a teaching sequence.
        learners: to compare with; None: :func:`baselines_of` the class.
        seed: of functions and guesses.
        cache: completions on disk.
        usage: counts what was sent.
        on_progress: called with (done, total).

    Raises:
        InputError: no counts, one below 1, or no answer came at all.
    """
    if not counts:
        raise InputError("no numbers of examples", where="counts", remedy="such as 5 and 10")
    for count in counts:
        check_range("counts", count, 1, 10_000, whole=True)
    check_range("functions", functions, 1, 1_000_000, whole=True)
    longest = max(counts) + 1
    data = FunctionData(function, size, longest, seed=seed, density=density, teaching=teaching, start=min(counts))
    made, places = data.sequences(functions), list(counts)
    requests = [
        CompletionRequest(examples_prompt(made.xs[row, : place + 1], made.ys[row])) for row in range(functions) for place in places
    ]
    answers = complete_all(model, requests, cache=cache, usage=usage, on_progress=on_progress)
    labels = [read_label(one.text) if isinstance(one, Completion) else None for one in answers]
    failures = [one for one in answers if not isinstance(one, Completion)]
    if len(failures) == len(answers):
        raise InputError(f"no answer came: {failures[0]}", where="model", remedy="is the endpoint up?")
    guesses = np.where(numpy_rng(seed, "guesses").random(len(labels)) < 0.5, -1.0, 1.0)
    given = [float(guess) if label is None else label for label, guess in zip(labels, guesses, strict=True)]
    predictions = np.array(given).reshape(functions, len(places))
    right = (predictions == made.ys[:, places]).astype(np.float64)
    known = baselines_of(function) if learners is None else learners
    curves = [curve_of(model.name, right, places, seed)]
    curves += [curve_of(name, correct(one(made.xs, made.ys), made)[:, places], places, seed) for name, one in known.items()]
    return LanguageModelResult(curves, labels.count(None), len(failures), len(answers), predictions)
