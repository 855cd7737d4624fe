"""A training job whose student is split over the processes: FSDP, as ``accelerate launch --use_fsdp`` asks for it.

Through torch's own ``fully_shard``, not ``Accelerator.prepare``: that wraps student and optimiser together, only on accelerators,
and the trainer holds both by name. ``fully_shard`` leaves the module tree, its names and hooks as they are. Of Accelerate's
settings for FSDP, only that it is asked for is read.

The student is one unit: gathered whole for a pass, so that a loss may read its weights after the forward pass, and given up
after the backward pass, which has reduced its gradients. So weights, gradients and the optimiser's state lie in parts
between passes; activations and the weights in use are as without FSDP. Scalar parameters and the method's own stay whole.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tutelage.distillation.data import flatten_tree
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import unwrap_model
from tutelage.distillation.parallel import DataParallelProcesses
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError

REMEDY = "choose data parallelism, which keeps the weights whole: torchrun, or `accelerate launch --multi_gpu`"


class FSDPProcesses(DataParallelProcesses):
    """The processes that were launched together, each with its part of the student.

    A parameter must get a gradient in all processes or in none. Raises as :class:`DataParallelProcesses`.
    """

    _student: nn.Module
    _empty: nn.Module

    def split(self, job: TrainingJob) -> Self:
        """See :class:`SingleProcess`.

        Raises:
            InputError: method, teacher or student need the weights whole, or something still holds a whole weight.
        """
        check_supported(job)
        student, found = job.student, copy.copy(self)
        before = {name: weakref.ref(parameter) for name, parameter in student.named_parameters() if parameter.ndim}
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in student.parameters() if p.ndim}
        found._empty = copy.deepcopy(student, empty)
        del empty
        scalars = {parameter for parameter in student.parameters() if not parameter.ndim}
        mesh = init_device_mesh(self._on.device.type, (self.size,))
        fully_shard(student, mesh=mesh, ignored_params=scalars)
        found._student = student
        gc.collect()
        for name, held in before.items():
            if held() is not None:
                raise InputError(f"student.{name} is still held whole", where=type(job.method).__name__, remedy=REMEDY)
        student.register_forward_pre_hook(_plain_inputs, with_kwargs=True)
        return found

    def backward(self, method: Method) -> Callable[[Callable[[], Tensor]], None]:
        """See :class:`SingleProcess`.

        Raises:
            InputError: the method reads parts of the student outside a forward pass of the whole.
        """

        def run(loss: Callable[[], Tensor]) -> None:
            try:
                total = loss()
            except RuntimeError as error:
                if "DTensor" not in str(error):
                    raise
                raise _outside_forward(method) from error
            if isinstance(total, DTensor):
                raise _outside_forward(method)
            total.backward()
            if any(not isinstance(p, DTensor) and p.ndim and p.grad is not None for p in self._student.parameters()):
                raise InputError(
                    "the loss does not depend on the student's outputs, only on what was tapped inside",
                    where=type(method).__name__,
                    remedy=REMEDY,
                )
            cast(FSDPModule, self._student).reshard()

        return run

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See :class:`SingleProcess`: the backward pass has done it for what is split."""
        super().average_gradients([parameter for parameter in parameters if not isinstance(parameter, DTensor)])
        split = [parameter.grad is not None for parameter in parameters if isinstance(parameter, DTensor)]
        if any(0 < share < 1 for share in self._on.reduce(torch.tensor(split, device=self._on.device).float(), "mean").tolist()):
            raise InputError("a split parameter has a gradient in some processes only", where="student", remedy=REMEDY)

    @torch.no_grad()
    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """See :class:`SingleProcess`."""
        squares = torch.stack([_local(tensor.detach()).double().square().sum() for tensor in tensors])
        split = torch.tensor([isinstance(tensor, DTensor) for tensor in tensors], device=squares.device)
        return torch.where(split, self._on.reduce(squares.clone(), "sum"), squares).sqrt().float()

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """See :class:`SingleProcess`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        factor = (limit / (self.norms(gradients).norm() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            _local(gradient).mul_(factor)

    @torch.no_grad()
    def gather_full(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`SingleProcess`."""
        found = {}
        for name, value in tensors.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            found[name] = whole if self.main or not isinstance(value, DTensor) else whole.new_empty(0)
        return found

    @torch.no_grad()
    def full_model(self, student: nn.Module) -> nn.Module:
        """See :class:`SingleProcess`: what is no tensor is as it was at the start."""
        memo: dict[int, Any] = {}
        for empty, parameter in zip(self._empty.parameters(), student.parameters(), strict=True):
            if isinstance(parameter, DTensor):
                memo[id(empty)] = nn.Parameter(parameter.full_tensor().detach(), parameter.requires_grad)
            else:
                empty.data = parameter.detach().clone()
        found = copy.deepcopy(self._empty, memo)
        for full_buffer, local_buffer in zip(found.buffers(), student.buffers(), strict=True):
            full_buffer.copy_(local_buffer)
        return found.train(student.training)

    def load(self, student: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See :class:`SingleProcess`."""
        like = student.state_dict()
        student.load_state_dict({name: _shard_like(value, like.get(name)) for name, value in state.items()})

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """See :class:`SingleProcess`."""
        for parameter, state in optimizer.state.items():
            state.update({key: _shard_like(value, parameter) for key, value in state.items()})


def check_supported(job: TrainingJob) -> None:
    """Raise InputError where method, teacher or student are known to need the weights whole."""
    method, teacher = type(job.method), job.teacher
    needs = [
        f"{method.__name__}.{name} works on the student's weights"
        for name in ("backward", "before_update", "after_step", "enter_phase", "turns")
        if getattr(method, name) is not getattr(Method, name)
    ]
    if teacher is not None and type(teacher).after_step is not Teacher.after_step:
        needs.append(f"the teacher {type(teacher).__name__} follows the student's weights, or may")
    if unwrap_model(job.student) is not job.student or any(m._compiled_call_impl is not None for m in job.student.modules()):
        needs.append("the student is compiled or wrapped")
    if job.settings.channels_last:
        needs.append("settings.channels_last lays the weights out in another order")
    if job.settings.ema is not None:
        needs.append("settings.ema averages them")
    if job.settings.precision == "fp16":
        needs.append("settings.precision = fp16 scales gradients: bf16 does not")
    if needs:
        raise InputError(f"FSDP splits the weights, and {needs[0]}", where=job.name, remedy=REMEDY)


def _outside_forward(method: Method) -> InputError:
    return InputError(
        "the method reads parts of the student outside a forward pass of the whole", where=type(method).__name__, remedy=REMEDY
    )


def _plain_inputs(student: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """FSDP takes the backward pass for done when the gradient of the inputs is there, which may be too soon."""
    for name, leaf in flatten_tree({"inputs": args, "options": kwargs}):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise InputError(f"a gradient is asked for the student's {name}", where=type(student).__name__, remedy=REMEDY)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard_like(value: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of the whole ``value``, if ``like``, of the same shape, is split."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
