"""Questions with their final answers, as graphs whose calls are encoded batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage import storage
from tutelage.distillation.data import Batch
from tutelage.errors import InputError
from tutelage.modules.visual_module import VisualModule
from tutelage.programs.types import Call, LimitExceeded, Module, ProgramFailure
from tutelage.sdvp.final_answer.factors import BoxUse
from tutelage.sdvp.final_answer.output_distributions import OutputReader, reader_of
from tutelage.sdvp.final_answer.program_graph import Graph, GraphCall, build_graph, run_symbolic
from tutelage.sdvp.questions import ProgramParser, Question

CHUNK = 256


class FinalAnswerGraphs:
    """Graphs whose right answer can be reached, and the ``trained`` modules that their calls are encoded by.

    ``inputs`` of a batch hold one group a trained module, its rows in the order of the batch's graphs; the graphs
    themselves travel in ``extra``. ``dropped`` counts the questions left out, by reason: ``unreachable``, or the kind of
    the program's failure.
    """

    def __init__(self, graphs: Sequence[Graph], modules: Mapping[str, VisualModule], dropped: Mapping[str, int]):
        self.graphs, self.modules, self.dropped = list(graphs), dict(modules), dict(dropped)
        self.readers = {name: reader_of(module) for name, module in self.modules.items()}
        parts = [
            (
                g.question.id,
                g.question.programs["visprog"],
                g.right.tolist(),
                [str(image.key) for image in g.question.images.values()],
            )
            for g in self.graphs
        ]
        self.fingerprint = storage.fingerprint("final", parts, [module.version for module in self.modules.values()])

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """The graphs ``indices`` and the inputs of their calls, by module."""
        graphs = [self.graphs[i] for i in indices.tolist()]
        inputs = {
            name: module.encode([one.call for one in found])
            for name, module in self.modules.items()
            if (found := trainable_calls(graphs, name))
        }
        return Batch(inputs, ids=indices, seeds=seeds, extra={"graphs": graphs})

    def likelihoods(self, graphs: Sequence[Graph], heads: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The probability of each graph's right answer, float64 [graphs], given every trained module's heads."""
        waiting = {}
        for name, out in heads.items():
            waiting[name] = iter(self.readers[name].distributions(out, trainable_calls(graphs, name)))
        found = []
        for graph in graphs:
            given = [
                next(waiting[one.call.module]) if number not in graph.fixed_distributions else graph.fixed_distributions[number]
                for number, one in enumerate(graph.calls)
            ]
            found.append(graph.likelihood(given))
        return torch.stack(found)


def trainable_calls(graphs: Sequence[Graph], name: str) -> list[GraphCall]:
    """The calls of ``graphs`` whose distribution depends on the trained module ``name``."""
    return [
        one
        for graph in graphs
        for n, one in enumerate(graph.calls)
        if one.call.module == name and n not in graph.fixed_distributions
    ]


def prepare(questions: Sequence[Question], modules: Mapping[str, Module], trained: Sequence[str]) -> FinalAnswerGraphs:
    """The questions as graphs for training the modules ``trained``; what the others answer is computed once.

    Raises:
        InputError: a module that is not there or has no network, a question without an answer, or no question whose
            right answer can be reached.
    """
    networks = {name: module for name, module in modules.items() if isinstance(module, VisualModule)}
    for name in trained:
        if name not in networks:
            raise InputError(f"no trainable module {name!r}", where="trained", remedy=f"modules: {', '.join(networks)}")
    readers: dict[str, OutputReader] = {}

    def ask(call: Call, use: BoxUse) -> GraphCall:
        if call.module not in networks:  # a user's function: it has one answer
            return GraphCall(call, use, [run_symbolic(modules[call.module], call)])
        if call.module not in readers:
            readers[call.module] = reader_of(networks[call.module])
        return readers[call.module].graph_call(call, use)

    programs, graphs, dropped = ProgramParser("visprog", modules), list[Graph](), Counter[str]()
    for question in questions:
        program = programs.parse(question)
        if isinstance(program, ProgramFailure):
            dropped[program.kind] += 1
            continue
        try:
            graph = build_graph(question, program, modules, ask)  # type: ignore[arg-type]
        except LimitExceeded as failure:
            dropped[failure.kind] += 1
            continue
        if graph.reachable:
            graphs.append(graph)
        else:
            dropped["unreachable"] += 1
    if not graphs:
        raise InputError("no question's right answer can be reached", where="questions", remedy=f"left out: {dict(dropped)}")
    _add_fixed_distributions(graphs, {name: module for name, module in networks.items() if name not in trained}, readers)
    return FinalAnswerGraphs(graphs, {name: networks[name] for name in trained}, dropped)


def _add_fixed_distributions(
    graphs: Sequence[Graph], frozen: Mapping[str, VisualModule], readers: Mapping[str, OutputReader]
) -> None:
    """Write the distributions that training does not change into the graphs."""
    for graph in graphs:
        certain = [n for n, one in enumerate(graph.calls) if len(one.outcomes) == 1]
        graph.fixed_distributions.update(dict.fromkeys(certain, torch.ones(1, dtype=torch.float64)))
    for name, module in frozen.items():
        places = [
            (g, n) for g in graphs for n, one in enumerate(g.calls) if one.call.module == name and n not in g.fixed_distributions
        ]
        for start in range(0, len(places), CHUNK):
            part = places[start : start + CHUNK]
            calls = [graph.calls[n] for graph, n in part]
            with torch.no_grad():
                found = readers[name].distributions(module.forward(module.encode([one.call for one in calls])), calls)
            for (graph, n), distribution in zip(part, found, strict=True):
                graph.fixed_distributions[n] = distribution.clone()
