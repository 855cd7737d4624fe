"""How a module's heads are read as distributions over what its calls may answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log
from typing import Protocol

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.modules.detection import HALVES, Loc
from tutelage.modules.visual_module import VisualModule
from tutelage.modules.vqa import Vqa
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.final_answer.factors import BoxUse, box_distribution, box_outcomes
from tutelage.sdvp.final_answer.program_graph import GraphCall


class OutputReader(Protocol):
    """What one module's calls may answer, and how probable each answer is."""

    def graph_call(self, call: Call, use: BoxUse) -> GraphCall:
        """The call's outcomes."""
        ...

    def distributions(self, heads: Mapping[str, Tensor], calls: Sequence[GraphCall]) -> list[Tensor]:
        """The distribution of every call, float64 [outcomes], differentiable; row i of the heads is call i."""
        ...


class ChoiceReader:
    """One answer of a vocabulary: softmax over those that the question allows."""

    def __init__(self, module: VisualModule):
        self.module = module
        (self.head,) = module.heads
        self.names = list(module.config.vocabulary.flat if isinstance(module, Vqa) else module.capabilities.vocabulary or ())
        if not self.names:
            raise InputError(f"{module.name} names no answers", remedy="give its capabilities a vocabulary")

    def graph_call(self, call: Call, use: BoxUse) -> GraphCall:
        """The allowed answers; ``detail`` holds their columns."""
        allowed = range(len(self.names))
        columns = self.module.config.vocabulary.read(call.args["question"]).allowed if isinstance(self.module, Vqa) else allowed
        return GraphCall(call, use, [self.names[column] for column in columns], list(columns))

    def distributions(self, heads: Mapping[str, Tensor], calls: Sequence[GraphCall]) -> list[Tensor]:
        """The softmax of the allowed columns."""
        logits = heads[self.head].double()
        return [row[one.detail].softmax(0) for row, one in zip(logits, calls, strict=True)]


class YesNoReader:
    """True or False: the sigmoid of one logit."""

    def __init__(self, module: VisualModule):
        (self.head,) = module.heads

    def graph_call(self, call: Call, use: BoxUse) -> GraphCall:
        """Both."""
        return GraphCall(call, use, [True, False])

    def distributions(self, heads: Mapping[str, Tensor], calls: Sequence[GraphCall]) -> list[Tensor]:
        """[p, 1 - p]."""
        p = heads[self.head].double().sigmoid()
        return list(torch.stack([p, 1 - p], 1))


class BoxReader:
    """Boxes that exist independently: the peaks of the module's heat-maps as it stands, their places kept (our choice).

    A box exists with ``sigmoid(logit - logit(threshold))``: above one half where the module itself would give it. The
    ``max_boxes`` best peaks of a call are considered, peaks below ``min_score`` are not (our choice).
    """

    def __init__(self, module: Loc, max_boxes: int = 8, min_score: float = 0.05):
        self.module, self.max_boxes, self.min_score = module, max_boxes, min_score
        threshold = module.config.threshold
        self.shift = log(threshold / (1 - threshold))
        self._known: dict[object, tuple[list[Box], tuple[list[int], list[int], list[int]]]] = {}

    def graph_call(self, call: Call, use: BoxUse) -> GraphCall:
        """The lists that ``use`` tells apart; ``detail`` holds classes, rows and columns of the peaks."""
        if call.args["object"] in HALVES:
            return GraphCall(call, use, [self.module.run([call]).values[0]])
        boxes, place = self._peaks(call)
        return GraphCall(call, use, [[boxes[i] for i in chosen] for chosen in box_outcomes(use, len(boxes))], place)

    def distributions(self, heads: Mapping[str, Tensor], calls: Sequence[GraphCall]) -> list[Tensor]:
        """From the heat at the peaks; calls with as many peaks and one use go together."""
        groups: dict[tuple[BoxUse, int], list[int]] = defaultdict(list)
        exists: list[Tensor] = []
        for i, one in enumerate(calls):
            classes, rows, columns = one.detail or ([0], [], [])
            peaks = heads["heat"][i, classes][:, rows, columns].amax(0).double()
            exists.append((peaks - self.shift).sigmoid())
            groups[one.use, len(rows)].append(i)
        found: list[Tensor] = [torch.ones(1, dtype=torch.float64)] * len(calls)
        for (use, n), members in groups.items():
            if n:
                table = box_distribution(use, torch.stack([exists[i] for i in members]))
                for i, row in zip(members, table, strict=True):
                    found[i] = row
        return found

    def _peaks(self, call: Call) -> tuple[list[Box], tuple[list[int], list[int], list[int]]]:
        key = (call.args["image"].key, call.args["object"])
        if key not in self._known:
            with torch.inference_mode():
                heads = self.module.forward(self.module.encode([call]))
            boxes = self.module.boxes(heads, [call], self.min_score)[0][: self.max_boxes]
            classes = self.module.classes_of(call.args["object"])[0]
            heat = heads["heat"][0].sigmoid()[classes].amax(0) if classes else heads["heat"][0, 0]
            cells = [_cell(box, heat, call) for box in boxes]
            self._known[key] = (boxes, (classes, [y for y, _ in cells], [x for _, x in cells]))
        return self._known[key]


def _cell(box: Box, heat: Tensor, call: Call) -> tuple[int, int]:
    """The cell (row, column) whose peak the box was read from: of the cells with its score, the nearest to its centre."""
    image, (x, y) = call.args["image"], box.center
    side = max(image.width, image.height)
    column, row = (x + (side - image.width) / 2) / side * heat.shape[1], (y + (side - image.height) / 2) / side * heat.shape[0]
    rows, columns = ((heat - box.score).abs() < 1e-6).nonzero(as_tuple=True)
    best = int(((rows + 0.5 - row) ** 2 + (columns + 0.5 - column) ** 2).argmin())
    return int(rows[best]), int(columns[best])


def reader_of(module: VisualModule) -> OutputReader:
    """The reader that fits the module's heads.

    Raises:
        InputError: heads without a discrete reading (tokens), or several heads of a module other than LOC.
    """
    if isinstance(module, Loc):
        return BoxReader(module)
    kinds = list(module.heads.values())
    if kinds == ["classes"]:
        return ChoiceReader(module)
    if kinds == ["logit"]:
        return YesNoReader(module)
    raise InputError(
        f"the heads of {module.name} ({', '.join(kinds)}) are not read as discrete answers",
        remedy="final labels reach modules with one head of classes or one logit, and LOC",
    )
