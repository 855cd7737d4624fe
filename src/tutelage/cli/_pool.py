"""The options that say who computes: the engine, its address, how many workers, how much at a time."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tutelage.workers import WorkerPool


class Engine(StrEnum):
    """What runs tasks: ``workers.ENGINES``."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[Engine, typer.Option("--engine", help="Processes of this machine, or Ray (extra ray).")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="With ray: the cluster's head, or auto; default: this machine.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Workers, one thread each; default: this process alone, or with ray every core.")
]


def pool(engine: Engine, address: str | None, workers: int | None) -> WorkerPool:
    """The pool that the options ask for."""
    from tutelage.workers import WorkerPool

    return WorkerPool(engine.value, workers or (1 if engine is Engine.local else None), address)
