"""Checkpoints: one safetensors file each, whole or absent, with the plain facts in its header. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tutelage import storage
from tutelage.errors import InputError, StaleError

FORMAT = "tutelage-checkpoint-1"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], format: str = FORMAT) -> Path:
    """Write ``tensors`` and the JSON ``metadata`` as one file, atomically; the same content gives the same bytes."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return storage.write_bytes(path, save(plain, {"tutelage": json.dumps({"format": format, **storage.to_plain(metadata)})}))


def read_tensors(path: str | Path, format: str = FORMAT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the head of a file that :func:`write_tensors` wrote.

    Raises:
        InputError: no such file, or not safetensors (it is never unpickled), or cut short.
        StaleError: safetensors of another kind or version.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("tutelage", "{}"))
            if head.get("format") != format:
                raise StaleError(
                    f"not a {format} file but {head.get('format', 'plain safetensors')}",
                    where=path,
                    remedy="give a file that this version of tutelage wrote",
                )
            return {name: file.get_tensor(name) for name in file.keys()}, head  # noqa: SIM118
    except FileNotFoundError:
        raise InputError("no such file", where=path, remedy="check the path") from None
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"not a readable safetensors file: {error}",
            where=path,
            remedy="it is cut short or of another kind; delete it to go on from the checkpoint before it",
        ) from error


class CheckpointManager:
    """The checkpoints of one run folder; the last two are kept."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def write(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Keep the state after ``step`` steps, and drop all but the last two."""
        path = write_tensors(self.folder / f"checkpoint-{step:09d}.safetensors", tensors, {"step": step, **metadata})
        for old in self._all()[:-2]:
            old.unlink(missing_ok=True)
        return path

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint's file, or None."""
        found = self._all()
        return found[-1] if found else None


def select_prefix(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under ``name.``, without that prefix."""
    head = f"{name}."
    return {key.removeprefix(head): value for key, value in tensors.items() if key.startswith(head)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, ``index.key``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": v for i, entry in state.items() for key, v in entry.items() if isinstance(v, Tensor)}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take up what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def truncate_log(log: Path, step: int) -> list[dict[str, Any]]:
    """The log's records up to ``step``; what a killed run wrote after its last checkpoint is cut off."""
    records = []
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the line a kill cut short
            if record["step"] > step:
                break
            records.append(record)
    storage.write_text(log, "".join(json.dumps(record) + "\n" for record in records))
    return records
