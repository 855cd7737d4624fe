"""Boolean conjunctions learned in context: from random examples, from teaching sequences, and one model for both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from tutelage.experiments import Experiment, Figure, Metric, better, equal, not_worse
from tutelage.experiments._classification import train_student
from tutelage.seeds import derive
from tutelage.systems._toy import build_with_seed
from tutelage.systems.icl_discrete_functions import (
    BASELINES,
    FunctionData,
    InContextLearning,
    InContextModel,
    Sequences,
    correct,
    elimination,
    predict,
)
from tutelage.systems.icl_discrete_functions.networks import Kind

SIZE, EXAMPLES, TEST = 6, 16, 2000
AFTER, LATE = "accuracy after k + 2 examples, %", "accuracy on random examples, positions 10 to 15, %"
FORCING = {"plain": 0.3, "mix": 0.35, "teach": 0.4}
STEPS = {"plain": 800, "mix": 1600, "teach": 500}
"""``mix`` sees as many random sequences as ``plain``."""
LSTM_STEPS = 2000


def functions(name: str, seed: int, role: str) -> FunctionData:
    """Conjunctions of six variables; half of the sequences of ``mix`` begin with a teaching sequence."""
    teaching = {"plain": 0.0, "mix": 0.5, "teach": 1.0}[name]
    own = derive(seed, role, name)
    return FunctionData("conjunction", SIZE, EXAMPLES, seed=own, teaching=teaching, forcing=FORCING[name])


def after_teaching(right: np.ndarray, sequences: Sequences) -> float:
    """Accuracy, %, at the four positions from k + 2 on, where a teaching sequence has just ended; functions with k >= 1."""
    places = sequences.literals[:, None] + 2 + np.arange(4)
    return 100 * float(np.take_along_axis(right, places, 1)[sequences.literals >= 1].mean())


def train_model(name: str, seed: int, steps: int, kind: Kind = "transformer") -> nn.Module:
    """A transformer of two blocks, or another network of one."""
    size = {"dim": 32, "depth": 2} if kind == "transformer" else {"dim": 64, "depth": 1}
    network = build_with_seed(lambda: InContextModel(SIZE, EXAMPLES, kind, **size), seed, "network")
    batch_size, lr = (32, 4e-3) if kind == "transformer" else (64, 5e-3)
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "warmup": min(50, steps), "seed": seed}
    return train_student(network, functions(name, seed, "train"), InContextLearning(), **settings)


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Transformers on random sequences, teaching sequences, half of each; an LSTM; other networks with ``all_arms``; learners."""
    tests = {name: functions(name, seed, "test").sequences(50 if smoke else TEST) for name in ("plain", "teach")}
    arms: dict[str, Figure] = {}

    def score(name: str, sequences: str, predictions: np.ndarray) -> None:
        made = tests[sequences]
        right = correct(predictions, made)
        figures = {AFTER: after_teaching(right, made)}
        if sequences == "plain":
            figures[LATE] = 100 * float(right[:, 10:].mean())
        arms[f"{name}, {'teaching' if sequences == 'teach' else 'random'} sequences"] = figures

    for name, steps in STEPS.items():
        network = train_model(name, seed, 4 if smoke else steps)
        for sequences, made in tests.items():
            score(f"{name} model", sequences, predict(network, made))
    kinds: dict[Kind, str] = {"lstm": "LSTM"}
    if all_arms:
        kinds |= {"gru": "GRU", "retnet": "RetNet", "hyena": "Hyena", "dss": "diagonal state space"}
    for kind, name in kinds.items():
        network = train_model("plain", seed, 4 if smoke else LSTM_STEPS, kind)
        score(f"plain {name}", "plain", predict(network, tests["plain"]))
    for name, learner in {"elimination": elimination, **BASELINES}.items():
        for sequences, made in tests.items():
            score(name, sequences, learner(made.xs, made.ys))
    return arms


experiment = Experiment(
    metric=AFTER,
    further_metrics=[Metric(LATE)],
    claims=[
        better("teach model, teaching sequences", "plain model, random sequences"),
        better("teach model, teaching sequences", "elimination, random sequences"),
        equal("mix model, teaching sequences", "teach model, teaching sequences", 3.0),
        not_worse("mix model, random sequences", "plain model, random sequences", 5.0, metric=LATE),
        better("mix model, teaching sequences", "mix model, random sequences"),
        better("plain LSTM, random sequences", "1-NN, random sequences", metric=LATE),
    ],
    run=run,
    limits="Conjunctions of six variables, two blocks of width 32, a minute of training in all. On random sequences the "
    "transformers end below 1-NN, far from elimination, which the paper's 12 blocks nearly match on 28 variables; the LSTM reaches "
    "elimination. The mixed model is trained twice as long as the plain one, so that both see as many random sequences. That it "
    "is not worse on them is not shown: the mean difference is on its side, but seeds differ in when a network learns to join a "
    "label to its input. Tried on pilot seeds: equal steps (12 to 18 points worse); 1,000 and 2,000 steps with positions that "
    "start at a deviation of 0.02, as GPT-2's do (two seeds of the mixed model ended 14 points apart); 700 and 1,200 with 0.3, "
    "which is taken. Elimination is right everywhere after a teaching sequence by construction. The paper reports curves, not one "
    "number; parity and language models carry no claim here.",
)
