"""Which parameters are trained, in which groups, and the optimiser that trains them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from tutelage.distillation.method import Method
from tutelage.distillation.outputs import unwrap_model
from tutelage.distillation.settings import TrainingSettings
from tutelage.errors import InputError

_POSITIONS = ("pos", "positions", "pos_*embed*", "position_*embed*", "relative_pos*", "rel_pos*", "*bias_table")
"""A module or parameter of such a name holds positions."""
_TOKENS = ("token", "tokens", "*_token", "*_tokens", "queries", "registers")
"""A parameter, or a dict of parameters, of such a name holds learned tokens. (A layer of such a name has a ``weight`` in it.)"""
_BLOCK = re.compile(r"(blocks|layers?|stages?|levels|h|resblocks)\d*")
"""Names of lists of blocks."""


def trainable_parameters(student: nn.Module, method: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter that needs a gradient, named ``student.…`` or ``method.…``."""
    for owner, module in (("student", student), ("method", method)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{owner}.{name}", parameter


def vector_names(network: nn.Module) -> set[str]:
    """The parameters of fewer than two dimensions: norms, biases, layer scales.

    Examples:
        >>> sorted(vector_names(nn.Linear(2, 2)))
        ['bias']
    """
    return {name for name, parameter in network.named_parameters() if parameter.ndim < 2}


def declared_exempt_names(network: nn.Module) -> set[str]:
    """The parameters that ``network`` and the modules inside it name in ``no_weight_decay()`` (timm's protocol): a set of
    names as the module itself has them."""
    found = set()
    for prefix, module in network.named_modules():
        if callable(declared := getattr(module, "no_weight_decay", None)):
            found |= {f"{prefix}.{name}" if prefix else name for name in declared()}
    return found & {name for name, _ in network.named_parameters()}


def decay_exempt_names(network: nn.Module, patterns: Collection[str] = ()) -> set[str]:
    """The parameters on which weight decay should not fall.

    These are all vectors and scalars (norms, biases, layer scales), attention biases, position tables and learned tokens, known
    by their names; :func:`declared_exempt_names`; and what ``patterns`` match.

    Args:
        network: whose parameters.
        patterns: globs of parameter names.
    """
    found = vector_names(network) | declared_exempt_names(network)
    for name, _ in network.named_parameters():
        parts = name.split(".")
        last = parts[-1] if parts[-1] != "weight" else ""
        by_name = (
            last.endswith(("bias", "biases"))
            or any(fnmatch(part, pattern) for part in parts for pattern in _POSITIONS)
            or any(fnmatch(part, pattern) for part in (parts if last else ()) for pattern in _TOKENS)
        )
        if by_name or any(fnmatch(name, pattern) for pattern in patterns):
            found.add(name)
    return found


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """The number of the block that each parameter belongs to, from 0 at the input.

    Blocks are modules in lists called ``blocks``, ``layers``, ``stages`` and the like; in nested lists the inner ones. What
    lies before the first block (the stem) counts as block 0, what lies between two as the one before it, and what lies behind
    the last (norm and head) as the last: TinyViT's rule (Wu et al., 2022, section 4.1).

    Raises:
        InputError: there are fewer than two blocks.
    """
    blocks = list(_blocks(network, ""))
    if len(blocks) < 2:
        raise InputError(
            "no list of blocks is found in the network",
            where="settings.layer_decay",
            remedy="keep its blocks in a ModuleList called blocks, layers or stages, or leave layer_decay at 1",
        )
    found, current = {}, 0
    for name, _ in network.named_parameters():
        current = next((number for number, block in enumerate(blocks) if name.startswith(f"{block}.")), current)
        found[name] = current
    return found


def _blocks(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(_blocks(child, f"{path}."))
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and _BLOCK.fullmatch(prefix.rstrip(".").rpartition(".")[2])
        if inner:
            yield from inner
        elif listed and any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield path


def parameter_groups(
    settings: TrainingSettings,
    student: nn.Module,
    method: Method,
    parameters: Mapping[str, nn.Parameter],
    learned: Mapping[str, nn.Parameter],
) -> list[dict[str, Any]]:
    """The optimiser's groups: the method's, or one, divided by what weight decay spares and by layer.

    Args:
        settings: ``decay_exempt`` and ``layer_decay`` divide groups.
        student, method: whose parameters they are.
        parameters: those that this optimiser trains, by their names (``student.…``, ``method.…``).
        learned: all that are trained.

    Returns:
        ``{"params": […], …}`` with ``lr_scale`` and ``weight_decay`` where they are not the settings'.

    Raises:
        InputError: nothing to train, or ``Method.groups`` leaves out or repeats a trainable parameter.
    """
    groups = method.groups(student)
    own = {id(p) for p in parameters.values()}
    given: list[dict[str, Any]] = (
        [dict(group) for group in groups] if groups is not None else [{"params": list(parameters.values())}]
    )
    if groups is not None:
        for group in given:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        covered = sum(len(group["params"]) for group in given)
        if {id(p) for group in given for p in group["params"]} != {id(p) for p in learned.values()} or covered != len(learned):
            raise InputError(
                f"groups() names {covered} trainable parameters, student and method have {len(learned)}",
                where=type(method).__name__,
                remedy="put each trainable parameter of student and method into exactly one group",
            )
        for group in given:
            group["params"] = [p for p in group["params"] if id(p) in own]
        given = [group for group in given if group["params"]]
    if not parameters:
        raise InputError("nothing to train: no parameter needs a gradient", remedy="is the student frozen?")
    return _divided(settings, student, method, parameters, given)


def _divided(
    settings: TrainingSettings,
    student: nn.Module,
    method: Method,
    parameters: Mapping[str, nn.Parameter],
    given: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Each group in parts of one decay and one factor on the rate, in the order of their first parameters."""
    network = unwrap_model(student)
    named = {f"student.{name}": parameter for name, parameter in network.named_parameters()}
    named |= {f"method.{name}": parameter for name, parameter in method.named_parameters()}
    exempt: set[int] = set()
    decays = settings.weight_decay or any(group.get("weight_decay") for group in given)
    if decays and settings.decay_exempt is not False:
        spared_names = decay_exempt_names if settings.decay_exempt else declared_exempt_names
        names = {f"student.{name}" for name in spared_names(network)} | {f"method.{name}" for name in spared_names(method)}
        names |= {name for name in named if any(fnmatch(name, pattern) for pattern in method.no_weight_decay)}
        exempt = {id(named[name]) for name in names}
    if not exempt and settings.layer_decay == 1.0:
        return given
    factors: dict[int, float] = {}
    if settings.layer_decay != 1.0:
        numbers = layer_numbers(network)
        last = max(numbers.values())
        factors = {id(named[f"student.{name}"]): settings.layer_decay ** (last - number) for name, number in numbers.items()}
    found = []
    for group in given:
        parts: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault((id(parameter) in exempt, factors.get(id(parameter), 1.0)), []).append(parameter)
        for (spared, factor), members in parts.items():
            more = {"weight_decay": 0.0} if spared else {}
            found.append({**group, "params": members, "lr_scale": group.get("lr_scale", 1.0) * factor, **more})
    return found


def make_optimizer(
    settings: TrainingSettings, method: Method, parameters: Collection[nn.Parameter], groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimiser the settings ask for, fused where torch can, over the groups of :func:`parameter_groups`.

    Args:
        settings: of the optimiser.
        method: its phases say whether parameters join late.
        parameters: all of the groups.
        groups: torch's; ``lr_scale`` in them is left for the caller.
    """
    if len({type(p) for p in parameters}) > 1:  # split and whole ones, or quantised: one kind a group, in the same order
        groups = [{**group, "params": list(kind)} for group in groups for _, kind in itertools.groupby(group["params"], type)]
    plain = all(p.dtype in (torch.float32, torch.float64, torch.bfloat16) for p in parameters)
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": plain}
    if settings.optimizer == "sgd":
        split = any(hasattr(p, "to_local") for p in parameters)
        late = settings.momentum and any(phase.trains is not None for phase in method.phases())
        common["fused"] = plain and not split and not late  # torch's wants whole parameters, all with momentum or none
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    return torch.optim.AdamW(groups, betas=settings.betas, **common)
