"""What this process is: alone, or one of several that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tutelage.distillation.fsdp import FSDPProcesses
from tutelage.distillation.parallel import DataParallelProcesses, SingleProcess, engine_requested


def is_distributed(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (``torchrun``, ``accelerate launch``) has started this process as one of several."""
    return environment.get("WORLD_SIZE", "1") not in ("", "0", "1")


def current_processes(device: str = "cpu") -> SingleProcess:
    """What this process is: one of those launched together, with the student whole or, for FSDP, split; or alone."""
    if not is_distributed():
        return SingleProcess()
    if not engine_requested("FSDP"):
        return DataParallelProcesses(device)
    return FSDPProcesses(device)
