"""The learned writer: reads free text, writes programs in both languages, and says how sure it is.

It learns VisProg lines; the ViperGPT text of a program is composed from them, so both always mean the same. All of it is
ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage import digests, storage
from tutelage.distillation.export import load_weights, save_weights
from tutelage.errors import InputError
from tutelage.fields import check_field, check_items
from tutelage.programs.generators.base import Candidate, FailedProgram, GenerationRequest
from tutelage.programs.generators.paraphrases import QuestionProgramPair
from tutelage.programs.generators.program_templates import (
    HOLE,
    PLURAL,
    ProgramPart,
    join_program,
    split_program,
    to_program_pair,
    words,
)
from tutelage.programs.types import ParseFailure, ProgramFailure
from tutelage.reading import open_regular
from tutelage.sdvp.learned_generator.network import EncoderState, Seq2SeqNetwork

END, NONE = "", "none"
"""The line that ends a program, and the one that stands for no program at all."""
UNKNOWN = "unknown"
ABOUT = ("image", "pair", "single")
_SPECIAL = ("padding", UNKNOWN, *(f"about {about}" for about in ABOUT))
MIN_PROBABILITY = 0.9
"""A program of a lower mean token probability is no answer; settled on seeds 100 to 102."""
MAX_STEPS = 40
"""Steps after which writing is given up."""


@dataclass(frozen=True)
class TokenCodec:
    """The words that the network reads and the lines that it writes, each named by its place.

    ``arguments`` are the words that were arguments wherever they stood (images of one thing aside, where nouns need not
    be looked for): a program that passes one over has misread its question.
    """

    words: tuple[str, ...]
    lines: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    @classmethod
    def from_pairs(cls, pairs: Iterable[QuestionProgramPair]) -> TokenCodec:
        """Every word of the questions and every line of the programs."""
        known: set[str] = set()
        lines: set[str] = set()
        copied: set[str] = set()
        passed: set[str] = set()
        for pair in pairs:
            question = words(pair.question)
            known.update(question)
            if pair.program is not None:
                parts = split_program(pair.program, question)
                lines.update(part.line for part in parts)
                if pair.about != "single":
                    own = {word for part in parts for word in part.arguments}
                    copied |= own
                    passed |= set(question) - own
        return cls((*_SPECIAL, *sorted(known)), (END, NONE, *sorted(lines)), tuple(sorted(copied - passed)))

    def encode(self, question: Sequence[str], about: str) -> list[int]:
        """The ids of a question's words, opened by what it is about; an unknown word is UNKNOWN."""
        place = {word: number for number, word in enumerate(self.words)}
        return [place[f"about {about}"], *(place.get(word, 1) for word in question)]


class LearnedGenerator:
    """Writes programs for free text with a trained network; ``single``: each image shows one thing.

    A draft carries its mean token probability. There is a ParseFailure in its place where the network declines, where its
    program is less probable than ``min_probability``, and where the program passes over a word that the network has never read, or
    knows as an argument alone: it must not answer another question than was asked. The failure names such words.
    """

    def __init__(self, codes: TokenCodec, network: Seq2SeqNetwork, single: bool = False, min_probability: float = MIN_PROBABILITY):
        self.codes, self.network, self.single, self.min_probability = codes, network.eval(), single, min_probability
        state = network.state_dict()
        tensors = [state[key].cpu().contiguous().numpy().tobytes() for key in sorted(state)]
        self.version = storage.fingerprint(codes, *tensors)
        self._known, self._arguments = frozenset(codes.words), frozenset(codes.arguments)
        self._holes = np.array([line.count(HOLE) for line in codes.lines])

    @property
    def name(self) -> str:
        """With the network's version."""
        return f"learned {self.version[:8]}"

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        """The ``n`` best drafts of a beam search of that width, of those that are probable enough; one with a failure
        where there is none."""
        drafts: list[list[Candidate]] = []
        for start in range(0, len(requests), 256):
            drafts += self._generate(requests[start : start + 256], n)
        return drafts

    def repair(self, failed_programs: Sequence[FailedProgram]) -> list[Candidate]:
        """The best draft that is not the text that failed."""
        found = []
        for fault, drafts in zip(failed_programs, self.generate([fault.request for fault in failed_programs], n=3), strict=True):
            other = [draft for draft in drafts if draft.text != fault.text]
            found.append(other[0] if other else Candidate("", self.name, failure=ParseFailure("the writer knows no other program")))
        return found

    def unknown_words(self, question: str) -> tuple[str, ...]:
        """The question's words that the network has never read; they can be copied, not understood."""
        return tuple(word for word in words(question) if word not in self._known)

    def save(self, folder: str | Path) -> Path:
        """Write ``weights.safetensors`` and ``codes.json`` into ``folder``; the codes come last."""
        folder = Path(folder)
        width = self.network.word.embedding_dim
        head = {"format": "tutelage-writer", "version": self.version, "width": width}
        save_weights(self.network, folder / "weights.safetensors")
        held = {"codes": self.codes, "weights": digests.digest_of_file(folder / "weights.safetensors")}
        storage.write_json(folder / "codes.json", head | held, sealed=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path, single: bool = False, min_probability: float = MIN_PROBABILITY) -> LearnedGenerator:
        """What :meth:`save` wrote.

        Raises:
            InputError: the folder holds no writer, weights that do not fit it, or a bit of either has changed.
        """
        file, weights = Path(folder) / "codes.json", Path(folder) / "weights.safetensors"
        remedy = "delete the folder, and train again"
        head = storage.read_json(file)
        if not isinstance(head, dict) or head.get("format") != "tutelage-writer":
            raise InputError("not a folder of a writer", where=file, remedy="give the folder that save() wrote")
        head = storage.read_json(file, sealed=True, remedy=remedy)
        with open_regular(weights):
            pass
        if digests.digest_of_file(weights) != check_field(head, "weights", str, where=file, remedy=remedy):
            raise InputError("damaged: its bytes are not those that were saved", where=weights, remedy=remedy)
        held = check_field(head, "codes", dict, where=file, remedy=remedy)
        codes = TokenCodec(*(tuple(check_items(held, item.name, str, where=file, remedy=remedy)) for item in fields(TokenCodec)))
        width = check_field(head, "width", int, 1, 10_000, where=file, remedy=remedy)
        network = Seq2SeqNetwork(len(codes.words), len(codes.lines), width)
        load_weights(network, weights)
        return cls(codes, network, single, min_probability)

    def _generate(self, requests: Sequence[GenerationRequest], n: int) -> list[list[Candidate]]:
        questions = [words(request.question) for request in requests]
        drafts: list[list[Candidate]] = []
        for request, question, beams in zip(requests, questions, self._search(requests, questions, n), strict=True):
            found = [self._candidate(request, question, beam) for beam in beams]
            usable = [draft for draft in found if draft.failure is None]
            drafts.append(usable or found[:1] or [self._declined(request, "")])
        return drafts

    def _about(self, request: GenerationRequest) -> str:
        return "pair" if len(request.inputs) == 2 else "single" if self.single else "image"

    def _search(self, requests: Sequence[GenerationRequest], questions: Sequence[Sequence[str]], n: int) -> list[list[_BeamState]]:
        """The ``n`` most probable programs of each question, best first."""
        rows = [self.codes.encode(question, self._about(request)) for request, question in zip(requests, questions, strict=True)]
        ids, same = padded(rows, 0), padded([first_positions(["", *question]) for question in questions], 0)
        plural = self.codes.words.index(PLURAL) if PLURAL in self._known else -1
        done: list[list[_BeamState]] = [[] for _ in requests]
        live = [_BeamState(owner) for owner in range(len(requests))]
        with torch.inference_mode():
            memory, state = self.network.encode(ids, same)
            for _ in range(MAX_STEPS):
                if not live:
                    break
                owners = torch.tensor([beam.owner for beam in live])
                previous = torch.tensor([[beam.last if beam.steps else self.network.lines] for beam in live])
                copies = torch.tensor([[beam.holes > 0] for beam in live])
                held = EncoderState(*(part[owners] for part in memory))
                logprob, state = self.network.decode(held, previous, copies, state)
                scores = logprob[:, 0]
                uncopyable = (ids[owners] < len(_SPECIAL)) & (ids[owners] != 1) | (ids[owners] == plural)
                scores[:, self.network.lines :].masked_fill_(uncopyable, -torch.inf)
                best, places = scores.topk(min(n, scores.shape[1]), dim=1)
                live, kept = self._expand_beams(live, best.numpy(), places.numpy(), done, n)
                state = state[:, torch.tensor(kept, dtype=torch.long)]
        return [sorted(beams, key=lambda beam: -beam.score)[:n] for beams in done]

    def _expand_beams(
        self, live: list[_BeamState], best: np.ndarray, places: np.ndarray, finished: list[list[_BeamState]], n: int
    ) -> tuple[list[_BeamState], list[int]]:
        """The ``n`` best continuations of each question, and the beam that each came from; ended ones go to ``finished``."""
        grown: dict[int, list[tuple[_BeamState, int]]] = {}
        for number, beam in enumerate(live):
            for logprob, place in zip(best[number].tolist(), places[number].tolist()):
                if logprob > -100:
                    grown.setdefault(beam.owner, []).append(
                        (beam.extended(place, logprob, self.network.lines, self._holes), number)
                    )
        following: list[_BeamState] = []
        origin: list[int] = []
        for owner, found in grown.items():
            for beam, number in sorted(found, key=lambda item: -item[0].score)[:n]:
                if beam.ended:
                    finished[owner].append(beam)
                elif len(finished[owner]) < n:
                    following.append(beam)
                    origin.append(number)
        return following, origin

    def _candidate(self, request: GenerationRequest, question: Sequence[str], beam: _BeamState) -> Candidate:
        parts: list[ProgramPart] = []
        for place in beam.steps[:-1]:
            if place < self.network.lines:
                parts.append(ProgramPart(self.codes.lines[place]))
            else:
                line, arguments = parts[-1]
                parts[-1] = ProgramPart(line, (*arguments, question[place - self.network.lines - 1]))
        if not parts or beam.steps[-1] != 0:
            return self._declined(request, "")
        text = join_program(parts)
        copied = {word for part in parts for word in part.arguments}
        passed = [word for word in dict.fromkeys(question) if word not in copied and self._carries_meaning(word)]
        if beam.probability < self.min_probability or passed:
            return self._declined(request, text, beam.probability, passed)
        try:
            written = to_program_pair(text, request.inputs)
        except ProgramFailure as failure:
            return Candidate(text, self.name, beam.probability, failure.with_traceback(None))
        return Candidate(written.visprog if request.dsl == "visprog" else written.viper, self.name, beam.probability)

    def _carries_meaning(self, word: str) -> bool:
        """Whether a program that does not use the word passes something over."""
        return word not in self._known or (word in self._arguments and not self.single)

    def _declined(
        self, request: GenerationRequest, text: str, probability: float | None = None, passed: Sequence[str] = ()
    ) -> Candidate:
        reasons = [("words it has never read", self.unknown_words(request.question)), ("words its program passes over", passed)]
        message = "; ".join(f"{what}: {', '.join(map(repr, which))}" for what, which in reasons if which)
        remedy = f"put it in other words ({message})" if message else "ask about what the image shows, in other words"
        failure = ParseFailure(f"the learned writer has no program for {request.question!r}", remedy=remedy)
        return Candidate(text, self.name, probability, failure)


@dataclass(frozen=True)
class _BeamState:
    """A program under way: whose it is, its steps (places in ``logprob``), their log-probabilities, holes yet to fill."""

    owner: int
    steps: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    holes: int = 0
    ended: bool = False
    last: int = 0

    @property
    def score(self) -> float:
        return sum(self.logprobs)

    @property
    def probability(self) -> float:
        """The mean probability of its steps."""
        return float(np.exp(self.logprobs).mean())

    def extended(self, place: int, logprob: float, lines: int, holes: np.ndarray) -> _BeamState:
        """With one more step."""
        line = place < lines
        left = int(holes[place]) if line else self.holes - 1
        last = place if line else place + 1  # the opening line stands between lines and words
        return _BeamState(self.owner, (*self.steps, place), (*self.logprobs, logprob), left, line and place < 2, last)


def first_positions(question: Sequence[str]) -> list[int]:
    """The first place of each word."""
    seen: dict[str, int] = {}
    return [seen.setdefault(word, place) for place, word in enumerate(question)]


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of different lengths as one tensor [B, T] int64."""
    out = torch.full((len(rows), max(map(len, rows), default=0)), filler, dtype=torch.long)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def steps_of(program: Sequence[ProgramPart] | None, question: Sequence[str], codes: TokenCodec) -> list[int]:
    """The labels of a program: each line, then the place of each of its arguments; END, or NONE alone."""
    if program is None:
        return [codes.lines.index(NONE)]
    steps = []
    for part in program:
        steps.append(codes.lines.index(part.line))
        steps += [len(codes.lines) + 1 + question.index(word) for word in part.arguments]
    return [*steps, codes.lines.index(END)]
