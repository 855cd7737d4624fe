"""The writer that asks a language model, an endpoint's or a local one, and keeps its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tutelage.programs.types import LimitExceeded, ParseFailure, ProgramFailure
from tutelage.programs.generators.few_shot import Prompt, Prompts
from tutelage.programs.generators.completions import Ask, Completion, LanguageModel, Responses, Usage, unwrap
from tutelage.programs.generators.base import Draft, Fault, Request
from tutelage.seeds import derive

Done = Callable[[float, float], None]


class PromptedWriter:
    """Writes programs with a language model, from few-shot prompts; can be told its faults.

    One draft is greedy; several are sampled at ``temperature``, each from its own stream of ``seed``. Equal prompts are
    asked once, and never again where ``responses`` keeps them. ``usage`` counts; ``on_done`` is told (done, total).
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Prompts,
        *,
        responses: Responses | None = None,
        temperature: float = 0.7,
        seed: int = 0,
        on_done: Done | None = None,
    ):
        self.model, self.prompts, self.usage, self.on_done = model, prompts, Usage(), on_done
        self._responses, self._temperature, self._seed = responses, temperature, seed

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def write(self, requests: Sequence[Request], n: int = 1) -> list[list[Draft]]:
        """``n`` drafts each.

        Raises:
            InputError: the examples do not hold, or the model cannot be reached as it is set.
        """
        asks, places = list[Ask | ProgramFailure](), list[Request]()
        for request in requests:
            for sample in range(n):
                asks.append(self._ask(partial(self.prompts.prompt, request, sample), sample, n))
                places.append(request)
        drafts = [self._draft(request, answer) for request, answer in zip(places, self._answers(asks), strict=True)]
        return [drafts[start : start + n] for start in range(0, len(drafts), n)]

    def repair(self, faults: Sequence[Fault]) -> list[Draft]:
        """A greedy second draft for each fault: the model is shown its program and the error."""
        asks = [self._ask(partial(self.prompts.repair, fault)) for fault in faults]
        return [self._draft(fault.request, answer) for fault, answer in zip(faults, self._answers(asks), strict=True)]

    def _ask(self, prompt: Callable[[], Prompt], sample: int = 0, n: int = 1) -> Ask | ProgramFailure:
        try:
            asked = prompt()
        except ParseFailure as failure:
            return failure
        if n == 1 or self._temperature == 0:
            return Ask(asked)
        return Ask(asked, self._temperature, derive(self._seed, "sampled programs", sample) % 2**31)

    def _answers(self, asks: Sequence[Ask | ProgramFailure]) -> list[Completion | ProgramFailure]:
        known: dict[Ask, Completion | ProgramFailure] = {}
        settings = self.model.settings
        wanted = list(dict.fromkeys(ask for ask in asks if isinstance(ask, Ask)))
        for ask in wanted:
            kept = self._responses.get(settings, ask) if self._responses is not None else None
            if kept is not None:
                known[ask] = kept
                self.usage.cached += 1
        missing = [ask for ask in wanted if ask not in known]
        self._tell(len(known), len(wanted))
        for number, answer in self.model.complete(missing):
            known[missing[number]] = answer
            self.usage.add(answer)
            if self._responses is not None and isinstance(answer, Completion):
                self._responses.put(settings, missing[number], answer)
            self._tell(len(known), len(wanted))
        return [known[ask] if isinstance(ask, Ask) else ask for ask in asks]

    def _tell(self, done: int, total: int) -> None:
        if self.on_done is not None:
            self.on_done(done, total)

    def _draft(self, request: Request, answer: Completion | ProgramFailure) -> Draft:
        if isinstance(answer, ProgramFailure):
            return Draft("", self.name, failure=answer)
        text = unwrap(answer.text, request.dsl)
        if answer.finish == "length":
            cut = LimitExceeded("the model's answer was cut at its token limit", remedy="allow more tokens")
            return Draft(text, self.name, answer.probability, cut)
        return Draft(text, self.name, answer.probability)
