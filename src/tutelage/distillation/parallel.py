"""One training job on several processes: each takes its rows of every batch, gradients are averaged, one process writes.

Through Accelerate (extra ``hf``), at its smallest surface: it finds device and peers from what ``torchrun`` or its own launcher
says, and reduces and broadcasts tensors. The student is not wrapped: methods reach into it by name, tap it, and may run
backward twice, so gradients of student and method are averaged once a step, in one message, after the last backward pass.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, nn

from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.data import Batch, flatten_tree, take_rows
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.method import Method
from tutelage.errors import InputError, MissingExtra

PATIENCE = timedelta(days=7)
"""How long processes wait for one another: the first may be building a cache for all."""


class SingleProcess:
    """One process: what the trainer is by itself."""

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def rng_offset(self) -> tuple[int, ...]:
        """What parts this process's random numbers from the first's: nothing for the first."""
        return (self.rank,) if self.rank else ()

    def device(self, requested: str) -> torch.device:
        """Where this process computes.

        Raises:
            InputError: there is no such device here.
        """
        try:
            torch.empty(0, device=requested)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            message = f"no device {requested!r} here: {str(error).splitlines()[0]}"
            raise InputError(message, where="settings.device", remedy="cpu, or an accelerator that torch finds") from error
        return torch.device(requested)

    def check_supported(self, job: TrainingJob, example: Batch) -> None:
        """Raise InputError where the training job's batches cannot be split."""

    def split(self, job: TrainingJob) -> Self:
        """Split the prepared training job's student over the processes, where that is asked for; the processes that hold it so."""
        return self

    def local_rows(self, batch: Batch) -> tuple[Batch, float]:
        """This process's part of a batch, and what its loss counts: its share of the weight times the number of processes,
        so that the mean over the processes is the whole batch's mean."""
        return batch, 1.0

    def backward(self, method: Method) -> Callable[[Callable[[], Tensor]], None]:
        """What adds the gradient of a loss."""
        return method.backward

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make every gradient the mean over the processes."""

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm of each."""
        return torch.stack([tensor.detach().float().norm() for tensor in tensors])

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """Shorten the gradient, all parameters' together, to the norm ``limit``."""
        torch.nn.utils.clip_grad_norm_(parameters, limit)

    def gather_full(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tensors whole, in the process that writes."""
        return tensors

    def full_model(self, student: nn.Module) -> nn.Module:
        """The student with whole weights, in every process."""
        return student

    def load(self, student: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take up a state of whole tensors."""
        student.load_state_dict(state)

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Split the whole tensors that the optimiser took up."""

    def all_reduce_mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars as their means over the processes."""
        return sums

    def broadcast_scalar(self, number: float) -> float:
        """The first process's number."""
        return number

    def broadcast_parameters(self, *modules: nn.Module, buffers_alone: bool = False) -> None:
        """Give every process the first's parameters and buffers."""

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block, then the others; all leave together."""
        yield


class DataParallelProcesses(SingleProcess):
    """The processes that were launched together.

    The mean over processes is exact, up to rounding, for losses that are means over samples, weighted or not, and also where the
    batch does not divide. Terms with a norm of their own over the batch (contrastive ones, masked means) and batch statistics
    are taken over each process's rows, as in any data-parallel training; buffers are the first process's.

    Args:
        device: the training job's setting; ``cpu`` talks over gloo.

    Raises:
        MissingExtra: Accelerate is not installed.
        InputError: DeepSpeed or Megatron is asked for.
    """

    def __init__(self, device: str = "cpu"):
        try:
            import accelerate
        except ImportError:
            raise MissingExtra("accelerate", "hf") from None
        for engine in ("DEEPSPEED", "MEGATRON_LM"):
            if engine_requested(engine):
                raise InputError(
                    f"{engine} splits the weights, and methods need them whole",
                    where=f"ACCELERATE_USE_{engine}",
                    remedy="choose FSDP, or data parallelism: torchrun, or `accelerate launch --multi_gpu`",
                )
        patience = accelerate.InitProcessGroupKwargs(timeout=PATIENCE)
        self._on = accelerate.Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
        self._broadcast = accelerate.utils.broadcast
        atexit.register(_destroy_process_group)
        self.rank, self.size = self._on.process_index, self._on.num_processes

    def device(self, requested: str) -> torch.device:
        """``cpu``, or this process's own accelerator."""
        return torch.device("cpu") if requested == "cpu" else self._on.device

    def check_supported(self, job: TrainingJob, example: Batch) -> None:
        """See :class:`SingleProcess`.

        Raises:
            InputError: fewer rows than processes, tensors that are not one row a sample, or mixed views of a cached teacher.
        """
        rows = len(example)
        if rows < self.size:
            raise InputError(
                f"{rows} samples a batch for {self.size} processes", where="settings.batch_size", remedy="at least one each"
            )
        for name, leaf in flatten_tree({"inputs": example.inputs, "labels": example.labels}):
            if leaf.ndim == 0 or len(leaf) != rows:
                raise InputError(
                    f"{name} {list(leaf.shape)} is not one row for each of {rows} samples",
                    where=job.name,
                    remedy="such batches cannot be split: train in one process",
                )
        if example.partners is not None and isinstance(job.teacher, CachedTeacher):
            raise InputError(
                "a cached teacher knows a mixed view by its partner, which may be another process's row",
                where=job.name,
                remedy="leave the cache or the mixing out, or train in one process",
            )

    def local_rows(self, batch: Batch) -> tuple[Batch, float]:
        """See :class:`SingleProcess`."""
        first, last = (len(batch) * rank // self.size for rank in (self.rank, self.rank + 1))
        own = take_rows(batch, torch.arange(first, last))
        if batch.weights is None:
            return own, self.size * (last - first) / len(batch)
        total = float(batch.weights.sum())
        return own, self.size * float(batch.weights[first:last].sum()) / total if total else 0.0

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See :class:`SingleProcess`; where only some processes have a gradient, it is zero in the others."""
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        there = torch.tensor([float(parameter.grad is not None) for parameter in trainable], device=self._on.device)
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable]
        flat = self._on.reduce(torch.cat([there, *(gradient.reshape(-1) for gradient in own)]), "mean")
        there, *found = flat.split([len(trainable), *(gradient.numel() for gradient in own)])
        for parameter, gradient, some in zip(trainable, found, there.tolist(), strict=True):
            if some:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)

    def all_reduce_mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`SingleProcess`."""
        if not sums:
            return sums
        return dict(
            zip(sums, self._on.reduce(torch.stack([value.float() for value in sums.values()]), "mean").unbind(), strict=True)
        )

    def broadcast_scalar(self, number: float) -> float:
        """See :class:`SingleProcess`."""
        return float(self._broadcast(torch.tensor(number, device=self._on.device)))

    @torch.no_grad()
    def broadcast_parameters(self, *modules: nn.Module, buffers_alone: bool = False) -> None:
        """See :class:`SingleProcess`."""
        for module in modules:
            for tensor in (*(() if buffers_alone else module.parameters()), *module.buffers()):
                tensor.copy_(self._broadcast(tensor.detach().clone()))

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """See :class:`SingleProcess`."""
        if not self.main:
            self._on.wait_for_everyone()
        yield
        if self.main:
            self._on.wait_for_everyone()
        self._on.wait_for_everyone()


def engine_requested(engine: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher asks for an engine (``FSDP``, …), as ``accelerate launch`` does."""
    return environment.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("true", "1")


def _destroy_process_group() -> None:
    """Leave the others while this process is whole.

    The threads of a group may outlive it, for split tensors' caches hold it, and to free what they sent last they take the
    interpreter's lock: where they come to it after the interpreter is gone, the process aborts. Nothing tells when they rest.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.3)
