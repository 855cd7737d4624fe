"""Checkpoints: one safetensors file each, whole or absent, with the plain facts in its header. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import json
import mmap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tutelage import digests, reading, storage
from tutelage.errors import InputError, StaleError
from tutelage.fields import check_field

FORMAT = "tutelage-checkpoint-1"
REMEDY = "it is cut short, damaged or of another kind; delete it to go on from the checkpoint before it"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], format: str = FORMAT) -> Path:
    """Write ``tensors`` and the JSON ``metadata`` as one sealed file, atomically; the same content gives the same bytes."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    facts = {"format": format, **storage.to_plain(metadata), "seal": digests.BLANK}
    data = save(plain, {"tutelage": json.dumps(facts)})
    with storage.atomic_write(path) as file:
        for piece in digests.seal_parts(data, *_header(data)):
            file.write(piece)
    return Path(path)


def read_tensors(path: str | Path, format: str = FORMAT, remedy: str = REMEDY) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the head of a file that :func:`write_tensors` wrote; every byte is checked against its digest.

    Raises:
        InputError: no such file, or not safetensors (it is never unpickled), cut short, or a bit of it changed.
        StaleError: safetensors of another kind or version.
    """
    with reading.open_regular(path):
        pass
    try:
        with safe_open(str(path), framework="pt") as file:
            head = reading.parse_json((file.metadata() or {}).get("tutelage", "{}"), str(path), remedy)
            found = head.get("format", "plain safetensors") if isinstance(head, dict) else "another"
            if found != format:
                message = f"not a {format} file but {found}"
                raise StaleError(message, where=path, remedy="give a file that this version of tutelage wrote")
            with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
                start, end = _header(data)
                digests.check_seal(data, path, remedy, start=start, end=end)
            return {name: file.get_tensor(name) for name in file.keys()}, head  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"not a readable safetensors file: {error}", where=path, remedy=remedy) from error


def _header(data: bytes | mmap.mmap) -> tuple[int, int]:
    """Where the header of safetensors begins and ends."""
    return 8, 8 + int.from_bytes(data[:8], "little")


@contextlib.contextmanager
def taken_from(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint's tensors and head are taken up into an error that names it.

    Raises:
        StaleError: a tensor or field is missing, or of another shape or type.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        message = f"its state is not that of this run: {type(error).__name__}: {str(error)[:500]}"
        raise StaleError(
            message, where=path, remedy="delete it to go on from the checkpoint before it, or choose a new folder"
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
    """Take up what :func:`optimizer_tensors` gave.

    Raises:
        ValueError, IndexError: a tensor of no parameter, or not of its shape.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if value.dim() and value.shape != parameters[int(index)].shape:
            raise ValueError(f"{name} of the optimiser has shape {tuple(value.shape)}, not {tuple(parameters[int(index)].shape)}")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def truncate_log(log: Path, step: int) -> list[dict[str, Any]]:
    """The log's records up to ``step``; what a killed run wrote after its last checkpoint is cut off.

    A line that cannot be read is left out, with a warning where it is not the last, which a kill may have cut short.
    """
    records: list[dict[str, Any]] = []
    lines = reading.read_bytes(log).splitlines() if log.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = reading.parse_json(line, f"{log}:{number}")
            at = check_field(record, "step", int, 0, where=f"{log}:{number}")
        except InputError as error:
            if number < len(lines):
                warnings.warn(f"{error.where}: a damaged line of the log is left out: {error.message}", stacklevel=2)
            continue
        if at > step:
            break
        records.append(record)
    storage.write_text(log, "".join(json.dumps(record) + "\n" for record in records))
    return records
