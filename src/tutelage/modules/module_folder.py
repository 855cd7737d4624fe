"""Folders of saved modules: what the head says is checked, and every file against the digest that the head gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tutelage import digests, reading, storage
from tutelage.errors import InputError
from tutelage.fields import check_field

FORMAT = "tutelage-module"
REMEDY = "save the module again, or fetch its folder again"
MAX_WEIGHTS = 64 << 30
"""Bytes of a file of weights."""
KNOWN = frozenset({"format", "class", "config", "name", "version", "files", "digest"})


def write_head(file: Path, head: Mapping[str, Any], names: Iterable[str]) -> Path:
    """Write the head of a module, sealed, with the digests of the files ``names`` beside it."""
    held = {name: digests.digest_of_file(file.parent / name) for name in sorted(names)}
    return storage.write_json(file, {**head, "files": held}, sealed=True)


def read_head(file: Path) -> dict[str, Any]:
    """The head of a module: {format, class, config, name, version}; the folder's files are checked.

    A head without digests, as older versions wrote it, is read too: what it says besides must then be right.

    Raises:
        InputError: it is none, a field is not as it must be, or a bit of a file of the folder has changed.
    """
    data = reading.read_bytes(file)
    head = reading.parse_json(data, file, REMEDY)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError("not a module folder of tutelage", where=file, remedy="give the folder that save() wrote")
    if unknown := sorted(head.keys() - KNOWN):
        raise InputError(f"unknown fields: {', '.join(unknown)[:80]}", where=file, remedy=REMEDY)
    if digests.check_seal(data, file, REMEDY, required="digest" in head or "files" in head):
        for name in check_field(head, "files", dict, 0, 10_000, where=file, remedy=REMEDY):
            expected = check_field(head["files"], name, str, where=file, remedy=REMEDY)
            path = file.parent / Path(name).name
            with reading.open_regular(path):
                pass
            if digests.digest_of_file(path) != expected:
                raise InputError("damaged: its bytes are not those that were saved", where=path, remedy=REMEDY)
    for name in ("class", "name", "version"):
        check_field(head, name, str, 1, 200, where=file, remedy=REMEDY)
    check_field(head, "config", dict, where=file, remedy=REMEDY)
    return {name: value for name, value in head.items() if name not in ("files", "digest")}


def check_shapes(network: nn.Module, file: Path) -> None:
    """Compare a network, which may be on the device ``meta``, with the header of its weights, before memory is taken for them.

    Raises:
        InputError: the file is not safetensors, or a tensor is missing, too many, or of another shape.
    """
    with reading.open_regular(file):
        pass
    try:
        with safe_open(str(file), framework="pt") as found:
            shapes = {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"not readable safetensors: {error}", where=file, remedy=REMEDY) from error
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        if own.get(name) != shapes.get(name):
            held, wanted = (str(found.get(name, "missing")) for found in (shapes, own))
            message = f"weights of another network: {name[:80]} is {held}, the configuration wants {wanted}"
            raise InputError(message, where=file, remedy="is it the right folder?")


def outline(build: Any, config: Any) -> nn.Module | None:
    """The network of ``config`` without memory for its weights; None where it cannot be built that way.

    Raises:
        RuntimeError, ValueError, TypeError, OverflowError: the configuration's sizes make no network.
    """
    try:
        with torch.device("meta"):
            return build(config, seed=0).network
    except NotImplementedError:  # it looks at its own weights while it is built
        return None
