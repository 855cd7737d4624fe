"""TinyViT's fast pretraining distillation (Wu et al., 2022, arXiv 2207.10666): the store of sparse teacher labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.cache import densify, sparsify
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.storage import write_bytes, write_text
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.tinyvit.network import TinyViTNetwork


@system("tinyvit", kind="distillation")
class TinyViT(Method):
    """TinyViT: soft labels of a teacher that was asked once, of which only the K largest are kept, and no labels.

    ``L = -sum_c q_c log softmax(z_s)_c`` with ``q_c = p_c`` for the K most probable classes of the teacher and
    ``q_c = (1 - sum of the kept) / (C - K)`` for the others, not renormalised over the K. The labels of a view are
    found by its sample and its augmentation seed, so that training replays the very images the teacher saw: build a
    cache of the training job with ``store="topK"`` (``tutelage cache build``), and train on it. On a live teacher the same
    labels are made on the fly, so that both ways are one loss. Rounding to float16 may push the kept sum past 1: the
    kept values are then divided by it (our choice). Heads: ``logits`` [B, C].

    Published: K = 100 of 21,841 classes, 90 epochs of ImageNet-22k (481 GiB; dense float16 would be 56 TB), then fine-tuning
    on labels with rates that fall by layer and batch norm in eval mode (``TinyViTNetwork(frozen_norm=True)``), at 384 and 512
    pixels once more at 2e-5. :class:`PublishedLabels` reads and writes the published file format. The
    paper's networks: :class:`~tutelage.systems.tinyvit.network.TinyViTNetwork`, by name ``create("tinyvit:5m")``,
    with the published numbers of parameters and multiply-adds; :func:`~tutelage.systems.tinyvit.contraction.contract` is
    the search that found them. The result below is about the store; ``tutelage show tinyvit --all`` also runs the search,
    small, under a limit on parameters and one on :func:`~tutelage.systems.tinyvit.contraction.throughput`, and reports
    accuracy, parameters and images a second of what it finds beside a network that is narrowed evenly. Its candidates are
    trained for 40 steps: no claim is made of them.
    """

    Network = TinyViTNetwork
    TRAINING = {
        "pretraining": TrainingSettings(epochs=90, batch_size=4096, lr=2e-3, warmup_epochs=5, weight_decay=0.01, clip=5.0),
        "fine-tuning": TrainingSettings(epochs=30, batch_size=1024, lr=5e-4, weight_decay=1e-8, layer_decay=0.8, clip=5.0),
        "from-scratch": TrainingSettings(epochs=300, batch_size=1024, lr=1e-3, warmup_epochs=20, weight_decay=0.05, clip=5.0),
    }

    tasks = ("classification",)

    @dataclass(frozen=True)
    class Config:
        """``k``: classes kept; None: all, dense. A cached teacher was cut when its cache was built; ``k`` is then the
        number it was built with, or None."""

        k: int | None = 10

        def __post_init__(self) -> None:
            if self.k is not None and self.k < 1:
                raise InputError(f"cannot keep {self.k} classes", where="k", remedy="1 or more, or None for all")

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's logits; the teacher's ``labels`` [B, C]."""
        assert teacher is not None
        logits = teacher(batch)["logits"]
        classes = logits.shape[1]
        labels = logits.softmax(-1) if self.config.k is None else densify(*sparsify(logits, min(self.config.k, classes)), classes)
        return forward_heads(student, batch.inputs), {"logits": logits, "labels": labels}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``soft``: cross-entropy with the teacher's labels."""
        return {"soft": soft_cross_entropy(student["logits"], teacher["labels"], batch.weights)}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second with seeded views, two of each image."""
        student = build_with_seed(lambda: SmallCNN(4, 4, 8), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8, 16), seed, "teacher")
        images = toy_images(seed)
        data = TensorData(images.inputs, images.labels, views=Augmentation(crop=1, flip=0.5))
        return TrainingJob(
            student, teacher, cls(k=2), data, TrainingSettings(steps=8, batch_size=16, seed=seed, views=2), "tinyvit"
        )


def soft_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """``-sum_c q_c log softmax(z)_c``, mean over samples; logits and labels [B, C]."""
    return losses.average(-(labels.detach() * F.log_softmax(logits, -1)).sum(-1), weights)


# -- the published file format ---------------------------------------------------------------------------------------


class PublishedLabels:
    """Sparse labels in the files that TinyViT's authors publish: ``rank<r>-keys.txt`` and ``rank<r>-values.bin``.

    A folder ``logits_top<K>_epoch<E>`` holds an epoch; a record is the view's seed (int32), K class ids (int16) and K
    probabilities (float16), falling, little-endian: 4 + 4 K bytes. Records are found by their key.

    Raises:
        InputError: no such folder, a file cut short, or a key that comes twice.
    """

    def __init__(self, folder: str | Path, k: int):
        self.folder, self.k, self.size = Path(folder), k, 4 + 4 * k
        self._offsets: dict[str, tuple[np.ndarray, int]] = {}
        found = sorted(self.folder.glob("rank*-keys.txt"))
        if not found:
            raise InputError("no rank<r>-keys.txt", where=self.folder, remedy="give a folder logits_top<K>_epoch<E>")
        for keys_file in found:
            values_file = keys_file.with_name(keys_file.name.replace("-keys.txt", "-values.bin"))
            keys = keys_file.read_text(encoding="utf-8").split("\n")[:-1]
            if not values_file.exists() or values_file.stat().st_size != len(keys) * self.size:
                raise InputError(
                    f"not {len(keys)} records of {self.size} bytes",
                    where=values_file,
                    remedy=f"cut short, or K is not {k}",
                )
            rows = np.memmap(values_file, np.uint8, "r").reshape(-1, self.size) if keys else np.empty((0, self.size), np.uint8)
            for number, key in enumerate(keys):
                if key in self._offsets:
                    raise InputError(f"the key {key!r} comes twice", where=f"{keys_file}:{number + 1}")
                self._offsets[key] = (rows, number)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __getitem__(self, key: str) -> tuple[int, Tensor, Tensor]:
        """(seed, class ids [K] int16, probabilities [K] float16) of ``key``; see :func:`densify`.

        Raises:
            InputError: no such key.
        """
        if key not in self._offsets:
            raise InputError(f"no record of {key!r}", where=self.folder, remedy="was it written in this epoch?")
        rows, number = self._offsets[key]
        record = rows[number].tobytes()
        ids = np.frombuffer(record, "<i2", self.k, 4).astype(np.int16)
        values = np.frombuffer(record, "<f2", self.k, 4 + 2 * self.k).astype(np.float16)
        return int(np.frombuffer(record, "<i4", 1)[0]), torch.from_numpy(ids), torch.from_numpy(values)

    @staticmethod
    def write(folder: str | Path, keys: Iterable[str], seeds: Tensor, logits: Tensor, k: int, rank: int = 0) -> Path:
        """Write the records of views ``keys`` with ``seeds`` [N] and teacher ``logits`` [N, C]; returns the folder.

        Raises:
            InputError: 32,768 classes or more (int16 does not hold them), a key twice or with a line break, or a seed
                of more than 31 bits.
        """
        names = list(keys)
        if logits.shape[-1] > 2**15:
            raise InputError(f"{logits.shape[-1]} classes do not fit int16", remedy="use the teacher cache: it widens")
        if len(set(names)) != len(names) or any("\n" in name for name in names) or len(names) != len(logits):
            raise InputError("keys must be unique, one line each, one a record", where="keys")
        seeds = seeds.long()  # 2**31 itself is beyond int32
        if bool((seeds < 0).any()) or bool((seeds >= 2**31).any()):
            raise InputError("a view seed has 31 bits", where="seeds")
        ids, values = sparsify(logits, k)
        columns = (seeds.numpy().astype("<i4"), ids.numpy().astype("<i2"), values.numpy().astype("<f2"))
        rows = np.concatenate([column.reshape(len(names), -1).view(np.uint8) for column in columns], 1)
        write_bytes(Path(folder) / f"rank{rank}-values.bin", rows.tobytes())
        write_text(Path(folder) / f"rank{rank}-keys.txt", "".join(f"{name}\n" for name in names))
        return Path(folder)
