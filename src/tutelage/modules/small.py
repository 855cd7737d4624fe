"""The embedded networks: small generalists and smaller specialists, a few ten thousand parameters each (ours).

LOC finds objects by class heat-maps, VQA answers questions over a closed vocabulary, VERIFY judges a property. Shapes
and sizes are chosen for one CPU thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.files import fingerprint
from tutelage.modules.pixels import as_bytes, extent, square_batch
from tutelage.modules.visual_module import Exercise, Label, VisualModule, class_targets
from tutelage.modules.words import Vocabulary, tokens
from tutelage.programs.language import Answers, Call, Signature
from tutelage.programs.values import Box, Image, iou

HALVES = {"TOP": (0, 0, 1, 0.5), "BOTTOM": (0, 0.5, 1, 1), "LEFT": (0, 0, 0.5, 1), "RIGHT": (0.5, 0, 1, 1)}
NEVER = -30.0
"""The logit of an answer that was not asked for: finite, so that divergences stay finite."""
ANY_OBJECT = frozenset({"object", "objects", "thing", "things", "shape", "shapes"})


def _seeded(seed: int, build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(memory_format=torch.channels_last)


def as_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in 0..1; float ones as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


class Trunk(nn.Sequential):
    """Convolutions from [B, 3, s, s] to [B, 4w, s/8, s/8]."""

    def __init__(self, width: int):
        steps = [(3, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 1), (3 * width, 4 * width, 2)]
        layers: list[nn.Module] = []
        for inside, outside, stride in steps:
            layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.ReLU()]
        super().__init__(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels as float in 0..1, or as the bytes that exercises keep."""
        return super().forward(as_float(pixels) - 0.5)


class AskNetwork(nn.Module):
    """Image crop x words -> logits: the words' mean embedding scales and shifts the crop's features (FiLM).

    Several questions about one crop share its convolutions.
    """

    def __init__(self, width: int, words: int, outputs: int, head: str):
        super().__init__()
        self.head = head
        features = 4 * width
        self.trunk = Trunk(width)
        self.embed = nn.Embedding(words + 1, 32)
        self.film = nn.Linear(32, 2 * features)
        self.mix = nn.Conv2d(features, features, 1)
        self.hidden = nn.Linear(2 * features + 2 + 32, 2 * features)
        self.out = nn.Linear(2 * features, outputs)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` [B, 3, s, s], ``extent`` [B, 2], ``words`` [B, L] or [B, K, L] for K questions a crop (padded with
        -1) and, where answers are many, ``allowed`` bool [B, (K,) A] -> {head: [B, (K,) A]} or a verdict [B, (K)]."""
        words = batch["words"]
        single = words.ndim == 2
        words = words[:, None] if single else words
        present = words >= 0
        asked = self.embed(words.clamp(min=0)) * present[..., None]
        asked = asked.sum(2) / present.sum(2, keepdim=True).clamp(min=1)
        scale, shift = self.film(asked)[..., None].chunk(2, 2)
        seen = self.mix(self.trunk(batch["pixels"])).flatten(2)[:, None]
        features = F.relu(seen * (1 + scale) + shift)
        extent = batch["extent"][:, None].expand(-1, words.shape[1], -1)
        logits = self.out(F.relu(self.hidden(torch.cat([features.amax(3), features.mean(3), extent, asked], 2))))
        if "allowed" in batch:
            allowed = batch["allowed"]
            logits = logits.masked_fill(~(allowed[:, None] if single else allowed), NEVER)
        else:
            logits = logits.squeeze(2)
        return {self.head: logits.squeeze(1) if single else logits}


class LocateNetwork(nn.Module):
    """Image -> class heat-map logits, box sizes and centre offsets on a grid of stride 4."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        w = width
        self.classes = classes
        self.down = nn.Sequential(nn.Conv2d(3, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(
            nn.Conv2d(2 * w, 3 * w, 3, 2, 1), nn.ReLU(), nn.Conv2d(3 * w, 3 * w, 3, 1, 1), nn.ReLU(), nn.Conv2d(3 * w, 2 * w, 1)
        )
        self.fuse = nn.Sequential(nn.Conv2d(2 * w, 3 * w, 3, 1, 1), nn.ReLU())
        self.out = nn.Conv2d(3 * w, classes + 4, 1)
        nn.init.constant_(self.out.bias[:classes], -3.0)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``pixels`` [B, 3, s, s] -> ``heat`` [B, C, s/4, s/4], ``size`` [B, 4, s/4, s/4]: width and height as shares
        of s, then the centre's offset from its cell's middle, in cells."""
        near = self.down(as_float(batch["pixels"]) - 0.5)
        far = F.interpolate(self.wide(near), scale_factor=2, mode="nearest")
        out = self.out(self.fuse(F.relu(near + far)))
        return {"heat": out[:, : self.classes], "size": out[:, self.classes :]}


def shared_rows(keys: Sequence[Any], most: int) -> list[list[int]]:
    """Positions with equal keys together, at most ``most`` a row, in the order of their first appearance."""
    rows: list[list[int]] = []
    latest: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        row = latest.get(key)
        if row is None or len(row) >= most:
            row = latest[key] = []
            rows.append(row)
        row.append(i)
    return rows


def hash_index(key: Any, count: int) -> int:
    """A number below ``count`` that depends on ``key`` alone."""
    return int(fingerprint(key), 16) % count


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as int64 [B, L], padded with -1."""
    width = max(1, max(map(len, rows)))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


@dataclass(frozen=True)
class AskConfig:
    """Size of an asking network and the vocabulary it speaks."""

    vocabulary: Vocabulary
    width: int = 16
    pixels: int = 32

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> AskConfig:
        """The configuration from what JSON held."""
        vocabulary = plain["vocabulary"]
        answers = tuple((kind, tuple(group)) for kind, group in vocabulary["answers"])
        return cls(Vocabulary(answers, tuple(vocabulary["nouns"])), plain["width"], plain["pixels"])


class Asking(VisualModule):
    """What VQA and VERIFY share: a crop, some words, one head."""

    Config = AskConfig
    most = 6
    """Questions that one row of an exercise holds."""

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        """Word ids of the call, and whether all words are known."""
        raise NotImplementedError

    def _allowed(self, calls: Sequence[Call]) -> Tensor | None:
        """bool [B, A]: which answers each call may get; None: one verdict."""
        return None

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s], extent [B, 2], words [B, L] and, for VQA, allowed bool [B, A]."""
        images = [call.args["image"] for call in calls]
        batch = {
            "pixels": square_batch(images, self.config.pixels),
            "extent": extent(images),
            "words": padded([self._words(call)[0] for call in calls]),
        }
        allowed = self._allowed(calls)
        return batch if allowed is None else {**batch, "allowed": allowed}

    def exercise(self, calls: Sequence[Call], labels: Sequence[Label] | None) -> Exercise:
        """Rows of one crop with up to ``most`` questions: pixels uint8 [N, 3, s, s], words [N, K, L]; targets and
        weights [N, K, ...]."""
        rows = shared_rows([call.args["image"].key for call in calls], self.most)
        first = [calls[row[0]] for row in rows]
        deep = max(map(len, rows))
        slots = torch.tensor([[*row, *[-1] * (deep - len(row))] for row in rows])
        index, real = slots.clamp(min=0), slots >= 0
        images = [call.args["image"] for call in first]
        inputs = {
            "pixels": as_bytes(images, self.config.pixels),
            "extent": extent(images),
            "words": padded([self._words(call)[0] for call in calls])[index],
        }
        allowed = self._allowed(calls)
        if allowed is not None:
            inputs["allowed"] = allowed[index]
        if labels is None:
            return Exercise(inputs, {}, real.float())
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)[index] * real
        ((head, _),) = self.heads.items()
        targets = {name: target[index] for name, target in self._targets(labels).items()}
        return Exercise(inputs, {head: targets}, weights)

    def _targets(self, labels: Sequence[Label]) -> dict[str, Tensor]:
        raise NotImplementedError


class Vqa(Asking):
    """VQA(image, question) -> the most probable answer of the asked type."""

    name = "VQA"
    signature = Signature({"image": "image", "question": "text"}, "text")
    heads: ClassVar = {"answer": "classes"}

    @classmethod
    def build(cls, config: AskConfig, seed: int) -> Self:
        """A freshly initialised module."""
        words, answers = len(config.vocabulary.words), len(config.vocabulary.flat)
        return cls(config, _seeded(seed, lambda: AskNetwork(config.width, words, answers, "answer")))

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        reading = self.config.vocabulary.read(call.args["question"])
        return reading.ids, reading.known

    def _allowed(self, calls: Sequence[Call]) -> Tensor:
        readings = [self.config.vocabulary.read(call.args["question"]) for call in calls]
        allowed = torch.zeros(len(calls), len(self.config.vocabulary.flat), dtype=torch.bool)
        rows = [row for row, reading in enumerate(readings) for _ in reading.allowed]
        allowed[rows, [column for reading in readings for column in reading.allowed]] = True
        return allowed

    def siblings(self, call: Call) -> list[Call]:
        """One question of every type about the same crop, and one it may say no to."""
        image, kinds = call.args["image"], self.config.vocabulary.answers
        asked = [Call("VQA", {"image": image, "question": f"What {kind} is the object?"}) for kind, _ in kinds if kind != "yes/no"]
        flat = self.config.vocabulary.flat
        word = flat[hash_index(image.key, len(flat) - 2)]
        return [*asked, Call("VQA", {"image": image, "question": f"Is the object {word}?"})]

    def _targets(self, labels: Sequence[Label]) -> dict[str, Tensor]:
        hard, soft = class_targets(labels, self.config.vocabulary.flat, self.name)
        return {"hard": hard, "soft": soft}

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> Answers:
        """The most probable answer, and the probabilities of those allowed."""
        names = self.config.vocabulary.flat
        readings = [self.config.vocabulary.read(call.args["question"]) for call in calls]
        probabilities = heads["answer"].softmax(1).tolist()
        dists = [{names[i]: row[i] for i in reading.allowed} for row, reading in zip(probabilities, readings, strict=True)]
        values = [max(dist, key=dist.__getitem__) for dist in dists]
        return Answers(values, dists, [not reading.known for reading in readings], heads)


class Verify(Asking):
    """VERIFY(image, object, property) -> does the object in the image have the property?"""

    name = "VERIFY"
    signature = Signature({"image": "image", "object": "text", "property": "text"}, "bool")
    heads: ClassVar = {"verdict": "logit"}

    @classmethod
    def build(cls, config: AskConfig, seed: int) -> Self:
        """A freshly initialised module."""
        return cls(config, _seeded(seed, lambda: AskNetwork(config.width, len(config.vocabulary.words), 1, "verdict")))

    def _words(self, call: Call) -> tuple[tuple[int, ...], bool]:
        return self.config.vocabulary.ids(f"{call.args['object']} {call.args['property']}")

    def siblings(self, call: Call) -> list[Call]:
        """One property of every type, asked of the same crop."""
        image, kinds = call.args["image"], self.config.vocabulary.answers
        words = [
            group[hash_index((image.key, kind), len(group))] for kind, group in kinds if kind not in ("yes/no", "number")
        ]
        return [Call("VERIFY", {"image": image, "object": "object", "property": word}) for word in words]

    def _targets(self, labels: Sequence[Label]) -> dict[str, Tensor]:
        return {"probability": torch.tensor([label.dist["yes"] if label.dist else float(bool(label.hard)) for label in labels])}

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> Answers:
        """True where the probability of yes is at least one half."""
        yes = heads["verdict"].sigmoid().tolist()
        known = [self._words(call)[1] for call in calls]
        return Answers([p >= 0.5 for p in yes], [{"yes": p, "no": 1 - p} for p in yes], [not k for k in known], heads)


@dataclass(frozen=True)
class LocConfig:
    """Size of a locating network, its classes, and how heat becomes boxes (threshold ours: the
    networks are calibrated near one half; suppression at 0.5 as in VisProg)."""

    classes: tuple[str, ...]
    width: int = 16
    pixels: int = 48
    threshold: float = 0.4
    nms: float = 0.5

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> LocConfig:
        """The configuration from what JSON held."""
        return cls(**{**plain, "classes": tuple(plain["classes"])})


class Loc(VisualModule):
    """LOC(image, object) -> boxes of that class, best first; TOP, BOTTOM, LEFT, RIGHT are that half of the image."""

    name = "LOC"
    signature = Signature({"image": "image", "object": "text"}, "boxes")
    heads: ClassVar = {"heat": "heatmap", "size": "size"}
    Config = LocConfig

    @classmethod
    def build(cls, config: LocConfig, seed: int) -> Self:
        """A freshly initialised module."""
        return cls(config, _seeded(seed, lambda: LocateNetwork(config.width, len(config.classes))))

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """pixels [B, 3, s, s]: the phrase is read in :meth:`decode`, so one forward serves every phrase."""
        return {"pixels": square_batch([call.args["image"] for call in calls], self.config.pixels)}

    def run(self, calls: Sequence[Call]) -> Answers:
        """As every module's; each distinct image is computed once, whatever is looked for in it."""
        distinct = {call.args["image"].key: call for call in calls}
        if len(distinct) == len(calls):
            return super().run(calls)
        rows = {key: row for row, key in enumerate(distinct)}
        index = torch.tensor([rows[call.args["image"].key] for call in calls])
        with torch.inference_mode():
            heads = self.forward(self.encode(list(distinct.values())))
            return self.decode({name: head[index] for name, head in heads.items()}, calls)

    def exercise(self, calls: Sequence[Call], labels: Sequence[Label] | None) -> Exercise:
        """One row an image, whatever was looked for in it: targets ``heat`` [N, C, h, w] with ``asked`` [N, C], and
        ``size`` [N, 4, h, w] with ``peaks`` [N, h, w]; a label is the boxes of the call's phrase."""
        keys = [call.args["image"].key for call in calls]
        rows = shared_rows(keys, len(calls))
        images = [calls[row[0]].args["image"] for row in rows]
        inputs = {"pixels": as_bytes(images, self.config.pixels)}
        if labels is None:
            return Exercise(inputs, {}, torch.ones(len(rows)))
        cells, classes = self.config.pixels // 4, len(self.config.classes)
        heat = np.zeros((len(rows), classes, cells, cells), np.float32)
        size = np.zeros((len(rows), 4, cells, cells), np.float32)
        peaks = np.zeros((len(rows), cells, cells), np.float32)
        asked = np.zeros((len(rows), classes), np.float32)
        for n, row in enumerate(rows):
            for i in row:
                found, _ = self.classes_of(calls[i].args["object"])
                if len(found) == 1:  # "object" says where, not which class: no heat-map can be taught by it
                    asked[n, found[0]] = labels[i].weight
                    for box in labels[i].hard:
                        _mark(heat[n, found[0]], size[n], peaks[n], box, images[n])
        targets = {
            "heat": {"heat": torch.from_numpy(heat), "asked": torch.from_numpy(asked)},
            "size": {"size": torch.from_numpy(size), "peaks": torch.from_numpy(peaks)},
        }
        return Exercise(inputs, targets, torch.ones(len(rows)))

    def classes_of(self, phrase: str) -> tuple[list[int], bool]:
        """Head positions of the classes that ``phrase`` names, and whether all its words are known."""
        words = tokens(phrase)
        if words and words[-1] in ANY_OBJECT:
            return list(range(len(self.config.classes))), len(words) == 1
        found = [i for i, name in enumerate(self.config.classes) if name in words or name + "s" in words]
        return found, len(found) == len(words) and bool(found)

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> Answers:
        """Boxes at the peaks of the class's heat-map, in pixels of the call's image."""
        values = [
            self._half(call) or boxes for call, boxes in zip(calls, self.boxes(heads, calls, self.config.threshold), strict=True)
        ]
        dists: list[dict[str, float] | None] = [{"found": box[0].score} if box else None for box in values]
        known = [call.args["object"] in HALVES or self.classes_of(call.args["object"])[1] for call in calls]
        return Answers(values, dists, [not k for k in known], heads)

    def candidates(self, calls: Sequence[Call], threshold: float = 0.05) -> list[list[Box]]:
        """Every peak above a low ``threshold``: what an observer needs to judge how sure the answers are."""
        with torch.inference_mode():
            return self.boxes(self.forward(self.encode(calls)), calls, threshold)

    def boxes(self, heads: Mapping[str, Tensor], calls: Sequence[Call], threshold: float) -> list[list[Box]]:
        """Boxes scoring at least ``threshold``, best first, overlaps suppressed, one list a call."""
        heat = heads["heat"].sigmoid()
        member = torch.zeros(heat.shape[:2], dtype=torch.bool)
        for row, call in enumerate(calls):
            member[row, self.classes_of(call.args["object"])[0]] = True
        best = heat.masked_fill(~member[:, :, None, None], 0).amax(1)
        peaks = (best >= F.max_pool2d(best[:, None], 3, 1, 1)[:, 0]) & (best >= threshold)
        rows, ys, xs = peaks.nonzero(as_tuple=True)
        found: list[list[Box]] = [[] for _ in calls]
        size = heads["size"][rows, :, ys, xs]
        cells = best.shape[-1]
        table = torch.stack(
            [
                (xs + 0.5 + size[:, 2].clamp(-1, 1)) / cells,
                (ys + 0.5 + size[:, 3].clamp(-1, 1)) / cells,
                size[:, 0].clamp(0.02, 1),
                size[:, 1].clamp(0.02, 1),
                best[rows, ys, xs],
            ],
            1,
        ).tolist()
        for row, (cx, cy, w, h, score) in zip(rows.tolist(), table, strict=True):
            found[row].append(_to_image(calls[row].args["image"], cx, cy, w, h, score))
        return [suppress(boxes, self.config.nms) for boxes in found]

    def siblings(self, call: Call) -> list[Call]:
        """Every class, looked for in the same image."""
        image = call.args["image"]
        return [Call("LOC", {"image": image, "object": name}) for name in self.config.classes]

    @staticmethod
    def _half(call: Call) -> list[Box] | None:
        half = HALVES.get(call.args["object"])
        if half is None:
            return None
        w, h = call.args["image"].width, call.args["image"].height
        return [Box(half[0] * w, half[1] * h, half[2] * w, half[3] * h)]


def _to_image(image: Image, cx: float, cy: float, w: float, h: float, score: float) -> Box:
    """From shares of the letterboxed square to pixels of the region, clipped to it."""
    side = max(image.width, image.height)
    left, top = (side - image.width) / 2, (side - image.height) / 2
    x, y, w, h = cx * side - left, cy * side - top, w * side / 2, h * side / 2
    return Box(
        max(0.0, min(x - w, image.width - 1)),
        max(0.0, min(y - h, image.height - 1)),
        min(float(image.width), max(x + w, 1)),
        min(float(image.height), max(y + h, 1)),
        score,
    )


def _mark(heat: np.ndarray, size: np.ndarray, peaks: np.ndarray, box: Box, image: Image) -> None:
    """Draw one box into the targets: a bump of 0.6 cells about its centre, and its size and offset in that cell."""
    cells, side = len(heat), max(image.width, image.height)
    (cx, cy) = box.center
    x, y = (cx + (side - image.width) / 2) / side * cells, (cy + (side - image.height) / 2) / side * cells
    column, row = min(cells - 1, max(0, int(x))), min(cells - 1, max(0, int(y)))
    near = np.arange(cells) + 0.5
    bump = np.exp(-((near[None] - x) ** 2 + (near[:, None] - y) ** 2) / (2 * 0.6**2)).astype(np.float32)
    bump[row, column] = 1
    np.maximum(heat, bump, out=heat)
    size[:, row, column] = (box.x2 - box.x1) / side, (box.y2 - box.y1) / side, x - column - 0.5, y - row - 0.5
    peaks[row, column] = 1


def suppress(boxes: list[Box], threshold: float) -> list[Box]:
    """Boxes by falling score, without those that overlap a better one by more than ``threshold`` (IoU)."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(iou(box, other) <= threshold for other in kept):
            kept.append(box)
    return kept
