"""An optional second form of the log: scalars that TensorBoard shows, beside the JSONL that everything else reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import MissingExtra


class TensorBoardLog:
    """Writes the trainer's records into ``folder/tensorboard``, one event file a call of the run.

    ``resumed``: the step the run goes on from; what an earlier call wrote after it is hidden.

    Raises:
        MissingExtra: ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path, resumed: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboard", "tensorboard") from None
        self._make = lambda: SummaryWriter(str(folder / "tensorboard"), purge_step=resumed + 1 if resumed else None)
        self._writer: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        """``loss``, ``lr``, ``terms/NAME`` and ``figures/NAME`` at the record's step; on disk when this returns."""
        if self._writer is None:  # a finished run that is read back leaves no empty file
            self._writer = self._make()
        scalars = {"loss": record["loss"], "lr": record["lr"]}
        for group in ("terms", "figures"):
            scalars |= {f"{group}/{name}": value for name, value in record.get(group, {}).items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()
