"""Shrink a trained network of your own by a search.

::

    from tutelage.systems.n2n_learning import Constraint, N2NLearning

    search = N2NLearning(teacher, data, constraint=Constraint(max_params=50_000))
    found = search.search(seed=0, out="runs/n2n")  # goes on where it was stopped
    student = search.train(found.student(), epochs=100)

``teacher``: an image classifier, a chain of convolutions, pooling, batch norm, ReLU, dropout and linear layers, with residual
blocks. ``data``: labelled images; a tenth is held out to score students. Afterwards the winner is a student for any method,
in a recipe too::

    [student]
    model = "n2n-learning"
    options = { architecture = "runs/n2n/architecture.json" }

N2N learning (Ashok, Rhinehart, Beainy, Kitani, "N2N learning: network to network compression via policy gradient
reinforcement learning", ICLR 2018, arXiv 1709.06030). Stage 1: a bidirectional LSTM reads the list of layers (kind, kernel,
stride, channels, padding, start and end of a residual block) and keeps or removes each. Stage 2: a second LSTM scales kernel,
stride, channels and padding of what the best child of stage 1 has left, by one of eleven factors each. A child that can be
built is trained for a few epochs on the teacher's logits, ``L = ||z_s - z_t||^2 / C``, and scored on held-out data:
``C = 1 - size / teacher's size``, ``R = accuracy / teacher's accuracy * C (2 - C)``; a child that cannot be built, or is not
smaller, earns -1. A violated constraint turns the reward of iteration e into ``(eps - 1) + eps R``,
``eps = max(0, 1 - e / 15)^4``; a limit of the size counts in stage 2 alone (our choice: in stage 1, before anything is shrunk,
it would have nearly all layers removed). The policies learn by REINFORCE, ``mean_i (R_i - b) sum_t grad log pi(a_it)``, b the
moving average of past rewards.

Use inside SDVP: shrink the trained network of a CLASSIFY or VERIFY module to a size budget.

Policies fit any number of layers: ``search.search(policies=Policies.load("runs/small/policies.safetensors"))`` goes on with those
of another teacher. Whether that saves iterations is not claimed here.

What differs from the authors' code. Each rollout is pushed by its own reward; their update gives all rollouts of an iteration
the mean reward. The shrinkage LSTM is trained; there its cells lie in a Python list, and only the last linear layer learns.
The score comes from held-out training data; theirs from the test data. Scores are kept by architecture, so that none is
trained twice. The optimiser is AdamW (their decay is an L2 term), and the shrinkage policy's learning rate 0.01 (theirs 0.1).

Limits: square, dense, ungrouped convolutions; residual blocks hold no blocks; no concatenations, attention or squeeze blocks.
Figures of the paper (more than 10 times smaller at similar accuracy) need CIFAR-10 and hundreds of trained students.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import storage
from tutelage.distillation.api import distill
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.teacher import network_fingerprint
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.storage import fingerprint
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.n2n_learning.candidates import Candidate, Candidates, SearchSettings, split
from tutelage.systems.n2n_learning.flattening import flatten_network
from tutelage.systems.n2n_learning.layer_list import (
    FIELDS,
    Architecture,
    always_kept,
    build,
    features,
    load_network,
    parameter_count,
    remove_layers,
    shrink_layers,
    shrinkable,
    to_json,
)
from tutelage.systems.n2n_learning.policies import FACTORS, Policies, train_policy
from tutelage.systems.n2n_learning.reward import Constraint


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        architecture: the winner; ``size`` its parameters, ``accuracy`` that of its short training on held-out data, 0..1.
        teacher_size, teacher_accuracy: what the rewards are relative to.
        policies: as trained; for the search of another teacher.
        history: every rollout, in order.
    """

    architecture: Architecture
    size: int
    accuracy: float
    teacher_size: int
    teacher_accuracy: float
    policies: Policies
    history: list[Candidate] = field(default_factory=list)

    @property
    def compression(self) -> float:
        """How many times smaller the winner is."""
        return self.teacher_size / self.size

    def student(self) -> nn.Sequential:
        """The winner's network with fresh weights, from torch's global generator."""
        return build(self.architecture)

    def save(self, folder: str | Path) -> Path:
        """Write ``architecture.json`` (a recipe's student), ``policies.safetensors`` and ``history.json``."""
        folder = Path(folder)
        rows = [one._asdict() | {"architecture": one.architecture and fingerprint(one.architecture)} for one in self.history]
        self.policies.save(folder / "policies.safetensors")
        storage.write_json(folder / "history.json", rows)
        return storage.write_json(folder / "architecture.json", to_json(self.architecture))


@system("n2n-learning", kind="compression")
class N2NLearning:
    """N2N learning: a policy removes layers of a trained network, a second one shrinks those that are left.

    Args:
        teacher: a trained image classifier; see ``flatten_network``.
        data: what students are trained on; of a ``TensorData`` a share is held out.
        held_out: labelled data that scores students; None: split off ``data``. Never the test data.
        constraint: the most parameters, the least accuracy.
        config: or its fields as ``options``.

    Raises:
        InputError: a teacher of another kind, one that is never right, data without labels or of one class, an option that
            does not exist.
    """

    Config = SearchSettings
    Network = staticmethod(load_network)

    def __init__(
        self,
        teacher: nn.Module,
        data: Any,
        held_out: Any = None,
        *,
        constraint: Constraint = Constraint(),  # noqa: B008  (frozen)
        config: SearchSettings | None = None,
        **options: Any,
    ):
        try:
            self.config = config or SearchSettings(**options)
        except TypeError as error:
            raise InputError(f"no such option: {error}", where="options", remedy=f"they are {SearchSettings()}") from error
        self.teacher, self.constraint = teacher.eval(), constraint
        self.whole = as_data(data)
        self.data, self.held_out = split(self.whole, held_out, self.config.share)
        image = self.data.batch(torch.arange(1), None).inputs
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise InputError("the inputs are no images [B, C, H, W]", where="data", remedy="give images of one size")
        self.architecture = flatten_network(teacher, (image.shape[1], image.shape[2], image.shape[3]))
        self.teacher_size = parameter_count(self.architecture)
        self.teacher_accuracy = evaluate(teacher, self.held_out, task="classification")["accuracy"] / 100
        if self.teacher_accuracy <= 0:
            raise InputError("the teacher is never right on the held-out data", where="teacher", remedy="give a trained network")

    def search(
        self,
        seed: int = 0,
        *,
        policies: Policies | None = None,
        out: str | Path | None = None,
        processes: int = 1,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> SearchResult:
        """Search for a smaller network; the same seed gives the same log.

        Args:
            seed: of policies, rollouts and students.
            policies: to go on with, those of another search; changed in place. None: fresh ones.
            out: a folder that keeps the score of each student and the teacher's answers, so that the same call goes on where it
                was stopped; the result is written there too.
            processes: students that are trained at once; more than 1 pays where a student takes longer than the start of a
                process.
            progress: called with (stage, iterations done, of all).

        Raises:
            InputError: no child keeps to the constraint; the message names the nearest.
            StaleError: ``out`` holds another search.
        """
        config = self.config
        with ExitStack() as stack:
            folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            storage.RunFolder(folder, {"search": fingerprint(*self._identity(seed, policies))})
            policies = policies or build_with_seed(lambda: Policies(critic=config.critic), seed, "policies")
            children = Candidates(
                self.teacher, self.data, self.held_out, config, self.constraint, self.teacher_size, self.teacher_accuracy,
                seed, folder, processes,
            )  # fmt: skip

            def judge(stage: str, iteration: int, iterations: int, found: list[Architecture]) -> list[float]:
                rewards = children.judge(stage, iteration, found)
                if progress is not None:
                    progress(stage, iteration + 1, iterations)
                return rewards

            whole = self.architecture
            rng, how = torch_rng(seed, "rollouts", "removal"), config.of_policy("removal")

            def removed(actions: Tensor, iteration: int) -> list[float]:
                return judge("removal", iteration, how.iterations, [remove_layers(whole, row == 1) for row in actions])

            train_policy(policies.removal, features(whole), ~always_kept(whole), removed, how, rng)
            best = children.best("removal")
            left = best.architecture if best is not None and best.architecture is not None else whole
            rng, then = torch_rng(seed, "rollouts", "shrinkage"), config.of_policy("shrinkage")

            def shrunk(actions: Tensor, iteration: int) -> list[float]:
                factors = torch.tensor(FACTORS)[actions].unflatten(1, (-1, len(FIELDS)))
                return judge("shrinkage", iteration, then.iterations, [shrink_layers(left, scale) for scale in factors])

            train_policy(policies.shrinkage, features(left), shrinkable(left), shrunk, then, rng)
            found = children.best()
            if found is None or found.architecture is None or not children.keeps(found):
                raise children.nothing()
            assert found.size is not None and found.accuracy is not None
            result = SearchResult(
                found.architecture, found.size, found.accuracy, self.teacher_size, self.teacher_accuracy, policies, children.history
            )
            if out is not None:
                result.save(folder)
        return result

    def train(self, student: nn.Module, seed: int = 0, out: str | Path | None = None, **settings: Any) -> nn.Module:
        """Train the winner to convergence by the search's own loss, on all of the data; ``settings`` as in
        ``tutelage.distill``."""
        given = self.config.training() | settings
        return distill(student, self.teacher, self.whole, self.config.method(), seeds=[seed], out=out, **given).student

    def _identity(self, seed: int, policies: Policies | None) -> list[Any]:
        before = None if policies is None else network_fingerprint(policies)
        parts = [self.config, self.constraint, seed, before, network_fingerprint(self.teacher)]
        return [*parts, self.data.fingerprint, self.held_out.fingerprint]

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float | str]:
        """A search of four students for a small untrained network."""
        teacher = build_with_seed(lambda: SmallCNN(4, 16, 32), seed, "teacher")
        config = SearchSettings(1, 1, rollouts=2, epochs=1, batch_size=16, share=0.5)
        found = N2NLearning(teacher, toy_images(seed), config=config).search(seed)
        kinds = " ".join(part.kind for part in found.architecture.parts if hasattr(part, "kind"))
        rewards = sum(one.reward for one in found.history)
        return {"size": found.size, "teacher's size": found.teacher_size, "sum of rewards": rewards, "layers": kinds}
