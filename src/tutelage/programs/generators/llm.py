"""The writer that asks a language model, an endpoint's or a local one, and keeps its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tutelage.programs.generators.base import Candidate, FailedProgram, GenerationRequest
from tutelage.programs.generators.completions import (
    Completion,
    CompletionCache,
    CompletionRequest,
    LanguageModel,
    Usage,
    complete_all,
    extract_program,
)
from tutelage.programs.generators.few_shot import Prompt, PromptBuilder
from tutelage.programs.types import LimitExceeded, ParseFailure, ProgramFailure
from tutelage.seeds import derive

ProgressCallback = Callable[[float, float], None]


class LLMGenerator:
    """Writes programs with a language model, from few-shot prompts; can be told its faults.

    One draft is greedy; several are sampled at ``temperature``, each from its own stream of ``seed``. Equal prompts are
    asked once, and never again where ``cache`` keeps them. ``usage`` counts; ``on_progress`` is told (done, total).
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: PromptBuilder,
        *,
        cache: CompletionCache | None = None,
        temperature: float = 0.7,
        seed: int = 0,
        on_progress: ProgressCallback | None = None,
    ):
        self.model, self.prompts, self.usage, self.on_progress = model, prompts, Usage(), on_progress
        self._cache, self._temperature, self._seed = cache, temperature, seed

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        """``n`` drafts each.

        Raises:
            InputError: the examples do not hold, or the model cannot be reached as it is set.
        """
        asks, places = list[CompletionRequest | ProgramFailure](), list[GenerationRequest]()
        for request in requests:
            for sample in range(n):
                asks.append(self._completion_request(partial(self.prompts.prompt, request, sample), sample, n))
                places.append(request)
        drafts = [self._candidate(request, answer) for request, answer in zip(places, self._complete(asks), strict=True)]
        return [drafts[start : start + n] for start in range(0, len(drafts), n)]

    def repair(self, failed_programs: Sequence[FailedProgram]) -> list[Candidate]:
        """A greedy second draft for each fault: the model is shown its program and the error."""
        asks = [self._completion_request(partial(self.prompts.repair, fault)) for fault in failed_programs]
        return [self._candidate(fault.request, answer) for fault, answer in zip(failed_programs, self._complete(asks), strict=True)]

    def _completion_request(self, prompt: Callable[[], Prompt], sample: int = 0, n: int = 1) -> CompletionRequest | ProgramFailure:
        try:
            messages = prompt()
        except ParseFailure as failure:
            return failure
        if n == 1 or self._temperature == 0:
            return CompletionRequest(messages)
        return CompletionRequest(messages, self._temperature, derive(self._seed, "sampled programs", sample) % 2**31)

    def _complete(self, requests: Sequence[CompletionRequest | ProgramFailure]) -> list[Completion | ProgramFailure]:
        wanted = [request for request in requests if isinstance(request, CompletionRequest)]
        answers = iter(complete_all(self.model, wanted, cache=self._cache, usage=self.usage, on_progress=self.on_progress))
        return [next(answers) if isinstance(request, CompletionRequest) else request for request in requests]

    def _candidate(self, request: GenerationRequest, answer: Completion | ProgramFailure) -> Candidate:
        if isinstance(answer, ProgramFailure):
            return Candidate("", self.name, failure=answer)
        text = extract_program(answer.text, request.dsl)
        if answer.finish == "length":
            cut = LimitExceeded("the model's answer was cut at its token limit", remedy="allow more tokens")
            return Candidate(text, self.name, answer.probability, cut)
        return Candidate(text, self.name, answer.probability)
