"""The log of a run: the mean of each loss term between records, and the records in memory, in a file and as TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from tutelage import storage
from tutelage.distillation.checkpoint import truncate_log
from tutelage.distillation.result import Record
from tutelage.distillation.tensorboard_log import TensorBoardLog


class TrainingLog:
    """Adds the terms up, and keeps the records.

    Attributes:
        history: the records so far.
        sums, counts: of each term since the last record: its sum, which stays on the device, and over how many passes.
        since: the step at which the sums began.

    Args:
        folder: where ``log.jsonl`` goes; None: only memory.
        tensorboard: write events too.
        writes: whether this process is the one that writes; the others read.
    """

    def __init__(self, folder: Path | None = None, tensorboard: bool = False, writes: bool = True):
        self.folder, self.writes = folder, writes
        self._tensorboard = tensorboard and writes and folder is not None
        self.history: list[Record] = []
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.since = 0
        self._events: TensorBoardLog | None = None

    def add(self, name: str, value: Tensor) -> None:
        """Take in a term's value of one pass; it is changed later."""
        held = self.sums.get(name)
        if held is None:
            self.sums[name], self.counts[name] = value, 1
        else:
            held += value
            self.counts[name] += 1

    def means(self) -> dict[str, float]:
        """Each term's mean since the last record."""
        return {name: value.item() / self.counts[name] for name, value in self.sums.items()}

    def resume(self, step: int) -> None:
        """Go on at ``step`` (0: anew): the file is cut to what was written by then.

        Raises:
            MissingExtra: events are asked for, and ``tensorboard`` is not installed.
        """
        if self.folder is None:
            return
        path = self.folder / "log.jsonl"
        if step:
            self.history = truncate_log(path, step)
        else:
            path.unlink(missing_ok=True)
        if self._tensorboard:
            self._events = TensorBoardLog(self.folder, step)

    def write(self, record: Record) -> None:
        """Keep a record, and begin new sums."""
        self.history.append(record)
        self.sums, self.counts, self.since = {}, {}, record["step"]
        if self.folder is not None and self.writes:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(storage.to_plain(record)) + "\n")
        if self._events is not None:
            self._events.write(record)

    def close(self) -> None:
        """End the event file."""
        if self._events is not None:
            self._events.close()
