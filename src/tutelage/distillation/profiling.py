"""A frozen teacher made faster: folded batch-norm, channels-last, bf16, each kept only where a timed step says so."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tutelage.distillation.data import Batch
from tutelage.distillation.outputs import Output
from tutelage.distillation.teacher import NetworkTeacher


def fold_batchnorm(network: nn.Module) -> tuple[nn.Module, int]:
    """A copy of ``network``, in eval mode, in which each batch-norm that follows a convolution and nothing else is part
    of that convolution; and how many were folded.

    What follows what is read from a symbolic trace. A network that cannot be traced is returned as it is, with 0.
    """
    network = copy.deepcopy(network).eval()
    try:
        graph = torch.fx.symbolic_trace(network).graph
    except Exception:  # tracing runs the user's forward: it may fail in any way, and then nothing is folded
        return network, 0
    modules = dict(network.named_modules())
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    folded = 0
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if type(conv) is not nn.Conv2d or len(before.users) != 1 or uses[before.target] != 1 or uses[node.target] != 1:
            continue
        norm = modules[node.target]
        if norm.running_mean is None:
            continue
        _replace(network, before.target, fuse_conv_bn_eval(conv, norm))
        _replace(network, node.target, nn.Identity())
        folded += 1
    return network, folded


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, module)


class LowPrecisionTeacher(NetworkTeacher):
    """A live teacher that computes in bf16 and answers in fp32."""

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            outputs = super().predict(batch)
        return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}


@dataclass(frozen=True)
class SpeedupResult:
    """The teacher chosen, which tricks it uses, the median milliseconds of each variant that was tried, and how far its
    answers are from the plain teacher's (largest difference relative to the largest value)."""

    teacher: NetworkTeacher
    tricks: tuple[str, ...]
    milliseconds: Mapping[str, float]
    error: float


def speed_up_teacher(
    network: nn.Module, batch: Batch, rounds: int = 5, bf16: bool = True, tolerance: float = 0.02
) -> SpeedupResult:
    """The fastest way to ask a frozen ``network`` about batches like ``batch``, by interleaved timed passes.

    Tried: plain, folded batch-norm (``fold``), with channels-last, and these in bf16; a variant whose answers differ by
    more than ``tolerance`` is out. The network itself is not changed.
    """
    folded, count = fold_batchnorm(network)
    base = "fold" if count else "plain"
    variants: dict[str, NetworkTeacher] = {
        "plain": NetworkTeacher(copy.deepcopy(network)),
        base: NetworkTeacher(copy.deepcopy(folded)),
    }
    variants[f"{base}+channels_last"] = NetworkTeacher(copy.deepcopy(folded), channels_last=True)
    if bf16:
        variants[f"{base}+bf16"] = LowPrecisionTeacher(copy.deepcopy(folded))
        variants[f"{base}+channels_last+bf16"] = LowPrecisionTeacher(copy.deepcopy(folded), channels_last=True)
    plain = variants["plain"](batch)
    errors = {name: _difference(plain, teacher(batch)) for name, teacher in variants.items()}
    allowed = [name for name in variants if errors[name] <= tolerance]
    times: dict[str, list[float]] = {name: [] for name in allowed}
    for _ in range(rounds):
        for name in allowed:
            times[name].append(_timed(variants[name], batch))
    medians = {name: 1000 * sorted(values)[len(values) // 2] for name, values in times.items()}
    best = min(medians, key=lambda name: medians[name])
    tricks = tuple(trick for trick in best.split("+") if trick != "plain")
    return SpeedupResult(variants[best], tricks, medians, errors[best])


def _difference(plain: Output, other: Output) -> float:
    def of(a: Tensor, b: Tensor) -> float:
        return float((a.float() - b.float()).abs().max() / a.float().abs().max().clamp_min(1e-12))

    return max(of(value, other[name]) for name, value in plain.items())


def _timed(teacher: Callable[[Batch], Output], batch: Batch) -> float:
    began = time.perf_counter()
    outputs = teacher(batch)
    if any(value.is_cuda for value in outputs.values()):
        torch.cuda.synchronize()
    return time.perf_counter() - began
