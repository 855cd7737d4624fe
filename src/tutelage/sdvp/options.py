"""The options of a task: what is taught in which order, by which loss, and how old knowledge is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tutelage.distillation.job import TrainingSettings
from tutelage.fields import check_range
from tutelage.sdvp.continual.base import NO_STRATEGY, ContinualStrategy, Examples
from tutelage.sdvp.continual.registry import parse
from tutelage.sdvp.label import Filters
from tutelage.sdvp.objective import StepwiseDistillation
from tutelage.sdvp.questions import Question, language_of


@dataclass(frozen=True)
class SdvpOptions:
    """How a task is learned (defaults: our choice).

    Attributes:
        dsl: The language of the programs; None: that which most questions of a task have a program in.
        order: The modules that are taught first, in this order; the others follow by name.
        modules: The modules that are taught; empty: every module that has a teacher.
        filters: Which labels count.
        loss: The objective. A ``StepwiseWithFinalAnswer.Config`` adds the final answers of the task's questions,
            weighted by its ``mu``; the questions then need answers.
        settings: Of the training of one module.
        strategy: The continual-learning strategy.
        replay: Whether calls of earlier tasks are replayed; False is naive fine-tuning.
        on_policy: Whether later steps of a collected program see the outputs of the modules; else they see the
            labels of the teachers (teacher forcing).
        attribution_floor: The weight in 0..1 of calls that caused no wrong answer; calls that did weigh up to 1.
            None gives equal weights. The questions need answers.
        max_drop: How far the accuracy on the guarded questions (0..1) may fall; None: it is not looked at.
        max_replay: The most calls that are replayed to one module.
        replay_ratio: Replayed rows to a labelled row of each batch.
        augment_replay: The share (0..1) of replayed rows that are shown in altered colours, their labels being the old
            outputs for the unaltered ones; for modules whose answers do not depend on colours
            (:attr:`~tutelage.modules.visual_module.VisualModule.photometric_input`).
        seed: Of sampling and training.
    """

    dsl: str | None = None
    order: tuple[str, ...] = ("LOC", "VERIFY", "VQA")
    modules: tuple[str, ...] = ()
    filters: Filters = Filters()
    loss: StepwiseDistillation.Config = StepwiseDistillation.Config()
    settings: TrainingSettings = TrainingSettings(steps=300, batch_size=64, lr=3e-3, warmup=30, clip=5.0, channels_last=True)
    strategy: ContinualStrategy = NO_STRATEGY
    replay: bool = True
    on_policy: bool = True
    attribution_floor: float | None = None
    max_drop: float | None = 0.005
    max_replay: int = 80_000
    replay_ratio: int = 2
    augment_replay: float = 0.33
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("replay_ratio", self.replay_ratio, 1, 1000, whole=True)
        check_range("augment_replay", self.augment_replay, 0, 1)

    def for_questions(self, questions: Sequence[Question]) -> SdvpOptions:
        """These options, with the language of the questions where they name none."""
        return self if self.dsl is not None else replace(self, dsl=language_of(questions))


def with_strategy(text: str, options: SdvpOptions = SdvpOptions(), examples: Examples | None = None) -> SdvpOptions:  # noqa: B008  (frozen)
    """``options`` with the continual-learning strategies that ``text`` names: ``self_distill``, ``none``, ``ewc+lora`` …

    Without ``self_distill``, lambda is 0. ``examples``: gold-labelled calls of old tasks by module, for ``labelled``.

    Raises:
        InputError: an unknown name.
    """
    strategy = parse(text, examples)
    loss = options.loss if strategy.uses_self_distillation else replace(options.loss, self_weight=0.0)
    return replace(options, strategy=strategy, replay=strategy.reads_inputs, loss=loss)
