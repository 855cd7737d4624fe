"""The selective scan of Mamba (Gu, Dao, 2023, arXiv 2312.00752, equation 2 and algorithm 2) in plain PyTorch, several ways.

``h_t = exp(D_t A) h_(t-1) + D_t B_t x_t``, ``y_t = C_t . h_t`` for every channel; the skip ``D x_t`` is the block's.
All ways give one answer up to rounding; which is the fastest depends on shapes and machine: :func:`fastest` times them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.errors import InputError, did_you_mean

ScanPath = Literal["loop", "chunked", "grouped"]
"""``loop``: step by step under autograd. ``chunked``: chunks of time that fit the cache, one fused operation a step,
gradient by hand. ``grouped``: the same, and within a chunk the groups of steps advance side by side: about the square
root of the operations, twice the arithmetic (for machines where an operation's start costs more than its work)."""

PATHS: tuple[ScanPath, ...] = get_args(ScanPath)
_CPU_CHUNK, _GPU_CHUNK = 2**17, 2**24  # state elements a chunk: what stays in a core's cache; what fills a GPU


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, path: ScanPath = "chunked", chunk: int | None = None
) -> Tensor:
    """The scan of ``x`` [batch, L, E] -> y [batch, L, E]; the state before the first step is 0.

    ``delta`` [batch, L, E] > 0; ``A`` [E, N] < 0; ``B``, ``C`` [batch, L, N]. ``chunk``: steps a chunk, by default what
    fits the cache. Half-precision inputs are scanned in float32. Gradients reach all five; not twice (but by ``loop``).

    Raises:
        InputError: shapes that do not agree, or an unknown ``path``.
    """
    if path not in PATHS:
        raise InputError(f"no scan {path!r}", where="path", remedy=did_you_mean(str(path), list(PATHS)))
    batch, length, width = x.shape
    states = A.shape[-1]
    wanted = {
        "delta": (delta, x.shape),
        "A": (A, (width, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != tuple(shape):
            raise InputError(f"shape {list(tensor.shape)} beside x {list(x.shape)}", where=name, remedy=f"give {list(shape)}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        inputs = [tensor.to(dtype) for tensor in (x, delta, A, B, C)]
        if path == "loop":
            return _loop(*inputs).to(x.dtype)
        if chunk is None:
            chunk = _chunk(batch * width * states, x.device)
        return _Scan.apply(*inputs, chunk, path == "grouped").to(x.dtype)  # type: ignore[no-untyped-call]


def _chunk(elements: int, device: torch.device) -> int:
    """Steps a chunk, where a step's state has so many elements."""
    if device.type == "cpu":
        return min(64, max(4, _CPU_CHUNK // max(1, elements)))
    return max(64, _GPU_CHUNK // max(1, elements))


def _loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The definition, a step at a time."""
    h = x.new_zeros(x.shape[0], *A.shape)
    answers = []
    for x_t, d_t, B_t, C_t in zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(d_t[..., None] * A) * h + (d_t * x_t)[..., None] * B_t[:, None]
        answers.append((h @ C_t[..., None])[..., 0])
    return torch.stack(answers, 1)


def _advance(a: Tensor, h: Tensor, before: Tensor, grouped: bool) -> None:
    """``h_t += a_t h_(t-1)`` in place, for t along the first dimension of [T, ...]; ``before`` [...] comes first."""
    group = math.isqrt(len(a)) if grouped else 0
    if group < 2:
        for a_t, h_t in zip(a.unbind(0), h.unbind(0), strict=True):
            h_t.addcmul_(a_t, before)
            before = h_t
        return
    count = len(a) // group
    whole = count * group
    by_group = h[:whole].unflatten(0, (count, group))
    steps, decays = by_group.unbind(1), a[:whole].unflatten(0, (count, group)).unbind(1)
    since = torch.empty_like(by_group)  # the product of decays since the group began
    shares = since.unbind(1)
    shares[0].copy_(decays[0])
    for i in range(1, group):
        steps[i].addcmul_(decays[i], steps[i - 1])
        torch.mul(decays[i], shares[i - 1], out=shares[i])
    starts = torch.empty_like(steps[0])  # the state in which each group begins
    starts[0].copy_(before)
    for i in range(1, count):
        torch.addcmul(by_group[i - 1, -1], since[i - 1, -1], starts[i - 1], out=starts[i])
    by_group.addcmul_(since, starts[:, None])
    _advance(a[whole:], h[whole:], h[whole - 1], False)


class _Scan(torch.autograd.Function):
    """The scan by chunks. Time comes first and channels last inside, so that a step is one piece of memory; of the states
    only the one before each chunk is kept, and the backward pass computes the others again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, grouped: bool) -> Tensor:
        """See :func:`selective_scan`."""
        x, delta, B, C = (tensor.transpose(0, 1).contiguous() for tensor in (x, delta, B, C))
        A = A.t().contiguous()
        (length, batch, width), states = x.shape, len(A)
        drive = delta * x
        y = torch.empty_like(x)
        spans = list(_spans(length, chunk))
        kept = x.new_zeros(len(spans) + 1, batch, states, width)
        for number, span in enumerate(spans):
            a = (delta[span, :, None] * A).exp_()
            h = drive[span, :, None] * B[span, ..., None]
            _advance(a, h, kept[number], grouped)
            kept[number + 1].copy_(h[-1])
            torch.bmm(C[span].flatten(0, 1)[:, None], h.flatten(0, 1), out=y[span].view(-1, 1, width))
        ctx.save_for_backward(x, delta, A, B, C, drive, kept)
        ctx.spans, ctx.grouped = spans, grouped
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """With ``g_t = C_t grad_t + a_(t+1) g_(t+1)``, the gradient of h_t: that of B_t x_t D_t is g_t, that of D_t A is
        ``g_t a_t h_(t-1)``, that of C_t is ``grad_t . h_t``."""
        x, delta, A, B, C, drive, kept = ctx.saved_tensors
        width = x.shape[-1]
        grad = grad.transpose(0, 1).contiguous()
        of_drive, of_delta, of_A = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(A)
        of_B, of_C = torch.empty_like(B), torch.empty_like(C)
        later = torch.zeros_like(kept[0])  # a_(t+1) g_(t+1) of the last step of the chunk
        for number in range(len(ctx.spans) - 1, -1, -1):
            span = ctx.spans[number]
            a = (delta[span, :, None] * A).exp_()
            h = kept.new_empty(len(a) + 1, *later.shape)
            h[0].copy_(kept[number])
            torch.mul(drive[span, :, None], B[span, ..., None], out=h[1:])
            _advance(a, h[1:], h[0], ctx.grouped)
            g = C[span, ..., None] * grad[span, :, None]
            g[-1].add_(later)
            if len(a) > 1:
                _retreat(a, g, ctx.grouped)
            later = a[0] * g[0]
            flat = g.flatten(0, 1)
            torch.bmm(h[1:].flatten(0, 1), grad[span].view(-1, width, 1), out=of_C[span].view(-1, len(A), 1))
            torch.bmm(flat, drive[span].view(-1, width, 1), out=of_B[span].view(-1, len(A), 1))
            torch.bmm(B[span].flatten(0, 1)[:, None], flat, out=of_drive[span].view(-1, 1, width))
            a.mul_(g).mul_(h[:-1])
            torch.sum(torch.mul(a, A, out=g), 2, out=of_delta[span])
            of_A += a.mul_(delta[span, :, None]).flatten(0, 1).sum(0)
        of_delta += of_drive * x
        of_x = of_drive.mul_(delta)
        return of_x.transpose(0, 1), of_delta.transpose(0, 1), of_A.t(), of_B.transpose(0, 1), of_C.transpose(0, 1), None, None


def _retreat(a: Tensor, g: Tensor, grouped: bool) -> None:
    """``g_t += a_(t+1) g_(t+1)`` in place, from the last step back."""
    if grouped:  # strides cannot run backwards: on copies, turned round
        turned = g.flip(0)
        _advance(a[1:].flip(0), turned[1:], turned[0], True)
        g.copy_(turned.flip(0))
        return
    steps, decays = g.unbind(0), a.unbind(0)
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(decays[t + 1], steps[t + 1])


def _spans(length: int, chunk: int) -> Iterator[slice]:
    for first in range(0, length, chunk):
        yield slice(first, min(first + chunk, length))


# -- the timed choice ------------------------------------------------------------------------------------------------


def example(batch: int, length: int, dim: int, states: int, device: str | torch.device = "cpu") -> list[Tensor]:
    """Random inputs of :func:`selective_scan`, with gradients asked for, in the ranges of a fresh network."""
    rng = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(batch, length, size, generator=rng) for size in (dim, states, states))
    delta = torch.exp(torch.empty(batch, length, dim).uniform_(math.log(1e-3), math.log(1e-1), generator=rng))
    A = -torch.arange(1.0, states + 1).expand(dim, states)
    return [tensor.to(device).contiguous().requires_grad_() for tensor in (x, delta, A, B, C)]


def time_paths(
    batch: int,
    length: int,
    dim: int,
    states: int,
    device: str | torch.device = "cpu",
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[ScanPath, list[float]]:
    """Seconds of a forward and backward pass by each path, one figure a round, the paths in turn; a first round is not
    counted."""
    inputs = example(batch, length, dim, states, device)
    seconds: dict[ScanPath, list[float]] = {path: [] for path in PATHS}
    for turn in range(rounds + 1):
        for path in PATHS:
            began = clock()
            torch.autograd.grad(selective_scan(*inputs, path=path).square().sum(), inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[path].append(clock() - began)
    return seconds


def fastest(seconds: Mapping[ScanPath, list[float]]) -> ScanPath:
    """The path of the smallest median; of equal ones the first."""
    return min(seconds, key=lambda path: sorted(seconds[path])[len(seconds[path]) // 2])
