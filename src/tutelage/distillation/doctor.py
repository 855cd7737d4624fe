"""The doctor: looks at a training job before time is spent on it, and says what to do about each thing that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from tutelage.distillation.cache import CachedTeacher, difference
from tutelage.distillation.checkpoint import select_prefix
from tutelage.distillation.checks import check_first_batch, resolve_task
from tutelage.distillation.data import Batch, ReplayableData, flatten_tree, map_tree, take_rows
from tutelage.distillation.data.dataset import DatasetData
from tutelage.distillation.data.replay import check_replay, check_worker
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.losses import hungarian_assignment
from tutelage.distillation.method import Method, TrainingProgress
from tutelage.distillation.optim import trainable_parameters
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.vocabulary import vocabularies
from tutelage.errors import InputError, TutelageError


@dataclass(frozen=True)
class Finding:
    """What one check found. ``remedy`` is empty where all is well; ``figures`` are what was measured."""

    check: str
    ok: bool
    message: str
    remedy: str = ""
    figures: dict[str, float] = field(default_factory=dict)


# -- the full examination --------------------------------------------------------------------------------------------


def diagnose(job: TrainingJob, labelled: ReplayableData | None = None, samples: int = 256, steps: int = 60) -> list[Finding]:
    """Every check, on copies: the training job is as before afterwards.

    Args:
        job: what to look at.
        labelled: data with class labels that the teacher should get right; None: the training job's own.
        samples: how many of them to ask about.
        steps: how long one batch is trained on to see whether it can be learned.

    Returns:
        The findings, in order; a check that cannot be made here is left out.
    """
    findings: list[Finding] = []
    batch = job.data.batch(*job.sample_order().step(0))
    try:
        with torch.random.fork_rng():
            resolve_task(job, batch)
            check_first_batch(job, batch)
    except TutelageError as error:
        return [Finding("first batch", False, str(error.message), f"{error.where}: {error.remedy}")]
    findings.append(Finding("first batch", True, "inputs, labels, classes and teacher outputs fit together"))
    if isinstance(job.data, DatasetData):
        findings += _replayed(job, batch)
    teacher = job.teacher
    if teacher is not None:
        findings += _frozen(teacher, batch)
        findings += _vocabulary(job.student, teacher.network, batch)
        findings += _score(teacher, labelled if labelled is not None else job.data, samples)
        findings += _cached(teacher, batch)
    findings += _learning(job, batch, steps)
    return findings


def _replayed(job: TrainingJob, batch: Batch) -> Iterator[Finding]:
    try:
        check_replay(job.data, batch, 32)
        check_worker(job.data, job.sample_order())
    except InputError as error:
        yield Finding("views replay", False, f"{error.where}: {error.message}", error.remedy or "")
    else:
        yield Finding("views replay", True, "samples read again, and by a worker process, are the same bit for bit")


def _frozen(teacher: Teacher, batch: Batch) -> Iterator[Finding]:
    network = teacher.network
    if network is None:
        return
    loose = [name for name, p in network.named_parameters() if p.requires_grad]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = teacher(batch), teacher(batch)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    unsteady = [name for name in first if not torch.equal(first[name], second[name])]
    if loose or changed or unsteady or network.training:
        what = (
            f"parameters want gradients: {loose[0]} …" if loose
            else f"an answer changes {changed[0]}" if changed
            else f"two answers to one batch differ in {unsteady[0]!r}" if unsteady
            else "it is in training mode"
        )  # fmt: skip
        yield Finding(
            "teacher frozen",
            False,
            what,
            "teacher.eval().requires_grad_(False); give it as a network, the core does both",
        )
    else:
        yield Finding("teacher frozen", True, "eval mode, no gradient, two answers agree bit for bit")


def _vocabulary(student: nn.Module, teacher: nn.Module | None, batch: Batch) -> Iterator[Finding]:
    if teacher is None or all(leaf.is_floating_point() for _, leaf in flatten_tree(batch.inputs)):
        return
    with (
        torch.no_grad(),
        vocabularies(student, batch.inputs, "student") as student_vocabularies,
        vocabularies(teacher, batch.inputs, "teacher") as teacher_vocabularies,
    ):
        forward_heads(student.eval(), batch.inputs), forward_heads(teacher, batch.inputs)
    for name in student_vocabularies.keys() & teacher_vocabularies.keys():
        same, sizes = (
            student_vocabularies[name] == teacher_vocabularies[name],
            f"{student_vocabularies[name]:,} and {teacher_vocabularies[name]:,} words for {name}",
        )
        yield Finding(
            "vocabulary", same, f"student and teacher know {sizes}",
            "" if same else "one tokenizer must have made the ids of both: give them the same vocabulary",
        )  # fmt: skip


def _score(teacher: Teacher, data: ReplayableData, samples: int) -> Iterator[Finding]:
    """The teacher's accuracy on plain samples; whether another class order or normalisation would do far better."""
    try:
        live = teacher.uncached
    except InputError:
        return
    count = min(samples, len(data))
    indices = torch.linspace(0, len(data) - 1, count).long()
    batch = data.batch(indices, None)
    labels = batch.labels
    if live.black_boxes or not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return

    known = labels >= 0  # the others are left out by every task
    if not bool(known.any()):
        return
    if not bool(known.all()):
        batch = take_rows(batch, known.nonzero()[:, 0])
        labels, count = batch.labels, int(known.sum())

    def predictions(inputs: object) -> Tensor | None:
        teacher_logits = live(replace(batch, inputs=inputs)).get("logits")
        return teacher_logits.argmax(-1) if teacher_logits is not None and teacher_logits.ndim == 2 else None

    found = predictions(batch.inputs)
    if found is None:
        return
    right = float((found == labels).float().mean())
    common = float(labels.bincount().max() / count)
    figures = {"accuracy": right, "most_common_label": common}
    classes = int(max(found.max(), labels.max())) + 1
    table = torch.zeros(classes, classes)
    table.index_put_((found, labels), torch.ones(count), accumulate=True)
    pairs = hungarian_assignment(-table.numpy())
    permuted = float(sum(table[a, b] for a, b in pairs) / count)
    figures["accuracy_best_order"] = permuted
    if permuted > right + 0.2 and permuted > 1.5 * right:
        yield Finding(
            "class order", False, f"{100 * right:.0f} % right as it is, {100 * permuted:.0f} % in another class order",
            "map the teacher's classes to the data's: " + ", ".join(f"{a} is {b}" for a, b in pairs if a != b)[:99],
            figures,
        )  # fmt: skip
        return
    best, better = max(
        (
            (float((teacher_logits == labels).float().mean()), name)
            for name, teacher_logits in _renormalised(batch.inputs, predictions)
        ),
        default=(0.0, ""),
    )
    if best > right + 0.1:
        yield Finding(
            "normalisation", False, f"{100 * right:.0f} % right as it is, {100 * best:.0f} % with inputs {better}",
            f"put that normalisation in front of the teacher: its inputs should be {better}",
            figures | {"accuracy_renormalised": best},
        )  # fmt: skip
        return
    if right <= common + 0.02:
        yield Finding(
            "teacher score", False, f"{100 * right:.0f} % right; the commonest label alone gives {100 * common:.0f} %",
            "check the teacher's weights, its classes and how its inputs are normalised; or train it longer",
            figures,
        )  # fmt: skip
    else:
        yield Finding("teacher score", True, f"{100 * right:.1f} % right on {count} plain samples", figures=figures)


def _renormalised(inputs: object, predictions: Callable[[object], Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        return
    mean, sd = inputs.mean((0, 2, 3), keepdim=True), inputs.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    ways: dict[str, Tensor] = {
        "of mean 0 and deviation 1": (inputs - mean) / sd,
        "times 255": inputs * 255,
        "divided by 255": inputs / 255,
        "in -1..1": inputs * 2 - 1,
        "in 0..1": (inputs + 1) / 2,
    }
    if inputs.shape[1] == 3:
        middle, spread = inputs.new_tensor([0.485, 0.456, 0.406]), inputs.new_tensor([0.229, 0.224, 0.225])
        ways["of ImageNet's mean and deviation"] = (inputs - middle[:, None, None]) / spread[:, None, None]
        ways["with channels in the order BGR"] = inputs.flip(1)
    for name, changed in ways.items():
        changed_predictions = predictions(changed)
        if changed_predictions is not None:
            yield name, changed_predictions


def _cached(teacher: Teacher, batch: Batch) -> Iterator[Finding]:
    if not isinstance(teacher, CachedTeacher) or teacher.source is None:
        return
    stored, live = teacher(batch), teacher.source(batch)
    heads = teacher.cache.metadata["heads"]
    worst = max(difference(entry["store"], stored[name], live[name]) for name, entry in heads.items())
    if worst > 1e-3:
        yield Finding(
            "cache", False, f"the cache differs from the live teacher by {worst:.2g}",
            "the teacher or the augmentation changed after the build: build the cache again", {"largest_error": worst},
        )  # fmt: skip
    else:
        yield Finding("cache", True, "cached equals live on the first batch", figures={"largest_error": worst})


def _learning(job: TrainingJob, batch: Batch, steps: int) -> Iterator[Finding]:
    """On copies: who gets a gradient, how the terms share it, whether one batch can be learned."""
    student, method = copy.deepcopy(job.student), copy.deepcopy(job.method)
    with torch.random.fork_rng():
        torch.manual_seed(job.settings.seed)
        with torch.no_grad():
            method.prepare(student.eval(), job.teacher, batch, job.data)
        student.train(), method.train()
        parameters = dict(trainable_parameters(student, method))
        terms, weights, shares = _shares(job, method, student, batch, parameters)
        yield from _gradients(method, parameters)
        yield _balance(terms, weights, shares)
        if len(method.turns()) == 1:  # turns may work against each other: one optimiser says nothing about them
            yield _overfits(job, method, student, batch, list(parameters.values()), steps)


def _loss(job: TrainingJob, method: Method, student: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The terms of every turn, and their weights."""
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for turn in method.turns():
        method.progress = replace(method.progress, turn=turn.name)
        shown = method.transform(copy.copy(batch))
        found = method.loss_terms(shown, *method(shown, student, job.teacher))
        given = method.loss_weights()
        terms |= found
        weights |= {name: given.get(name, 1.0) for name in found}
    return terms, weights


def gradient_shares(job: TrainingJob, trained: Mapping[str, Tensor] | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Each term's weighted value on the first batch, and its share (0..1) of the sum of the terms' gradient norms.

    On copies, as training would begin; or, with the tensors of a checkpoint as ``trained``, as it was there.
    """
    batch = job.data.batch(*job.sample_order().step(0))
    resolve_task(job, batch)
    student, method = copy.deepcopy(job.student), copy.deepcopy(job.method)
    with torch.random.fork_rng():
        torch.manual_seed(job.settings.seed)
        with torch.no_grad():
            method.prepare(student.eval(), job.teacher, batch, job.data)
        if trained is not None:
            student.load_state_dict(select_prefix(trained, "student"))
            method.load_state_dict(select_prefix(trained, "method"))
            method.progress = TrainingProgress(job.settings.steps, job.settings.steps)
        student.train(), method.train()
        values, weights, norms = _shares(job, method, student, batch, dict(trainable_parameters(student, method)))
    total = sum(norms.values()) or 1.0
    return {name: weights[name] * value for name, value in values.items()}, {name: n / total for name, n in norms.items()}


def _shares(
    job: TrainingJob, method: Method, student: nn.Module, batch: Batch, parameters: dict[str, nn.Parameter]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Each term's value and the norm of its weighted gradient; leaves the whole loss's gradient on the parameters."""
    terms, weights = _loss(job, method, student, batch)
    flat = list(parameters.values())
    norms: dict[str, float] = {}
    whole: list[Tensor | None] = [None] * len(flat)
    for name, term in terms.items():
        if not weights[name] or not term.requires_grad:
            norms[name] = 0.0
            continue
        found = torch.autograd.grad(term * weights[name], flat, retain_graph=True, allow_unused=True)
        norms[name] = float(sum(float(g.float().pow(2).sum()) for g in found if g is not None) ** 0.5)
        whole = [b if a is None else a if b is None else a + b for a, b in zip(whole, found, strict=True)]
    for parameter, gradient in zip(flat, whole, strict=True):
        parameter.grad = gradient
    return {name: float(term.detach()) for name, term in terms.items()}, weights, norms


def _gradients(method: Method, parameters: dict[str, nn.Parameter]) -> Iterator[Finding]:
    without = [name for name, p in parameters.items() if p.grad is None or not bool(p.grad.any())]
    dead = [name for name in without if not any(fnmatch(name, pattern) for pattern in method.unused_parameters)]
    if dead:
        some = ", ".join(dead[:4]) + (" …" if len(dead) > 4 else "")
        yield Finding(
            "gradients", False, f"{len(dead)} of {len(parameters)} trainable parameters get no gradient: {some}",
            "freeze them, use their outputs in a term, or declare them in the method's idle", {"without": len(dead)},
        )  # fmt: skip
    else:
        yield Finding("gradients", True, f"all {len(parameters)} trainable parameters get one (or are declared idle)")


def _balance(terms: dict[str, float], weights: dict[str, float], norms: dict[str, float]) -> Finding:
    total = sum(norms.values()) or 1.0
    figures = {f"{name} share": norms[name] / total for name in terms} | {f"{name} value": v for name, v in terms.items()}
    text = ", ".join(f"{name} {100 * norms[name] / total:.0f} % (value {terms[name]:.3g})" for name in terms)
    faint = [name for name in terms if weights[name] and norms[name] < 0.01 * total]
    if faint and len(terms) > 1:
        return Finding(
            "loss balance", False, f"shares of the gradient: {text}",
            f"{', '.join(faint)} moves nothing: raise its weight, lower the others', or leave it out", figures,
        )  # fmt: skip
    return Finding("loss balance", True, f"shares of the gradient: {text}", figures=figures)


def _overfits(
    job: TrainingJob, method: Method, student: nn.Module, batch: Batch, parameters: list[nn.Parameter], steps: int
) -> Finding:
    """Train on the one batch, at the training job's rate, a tenth, a hundredth; one must lower the loss by a fifth."""
    keep = map_tree(lambda t: t.detach().clone(), (student.state_dict(), method.state_dict()))
    rate, first, least = max(job.settings.lr, 1e-3), 0.0, float("inf")
    for _ in range(3):
        student.load_state_dict(keep[0]), method.load_state_dict(keep[1])
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for step in range(steps):
            terms, weights = _loss(job, method, student, batch)
            loss = torch.stack([weights[name] * term for name, term in terms.items() if weights[name]]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = float(loss.detach())
            first = value if step == 0 else first
            least = min(least, value) if value == value else least
        if least < 0.8 * first:
            break
        rate /= 10
    figures = {"first": first, "least": least}
    if not least < 0.8 * first:
        return Finding(
            "overfit one batch", False, f"the loss goes from {first:.3g} to {least:.3g} in {steps} steps on one batch",
            "is the target reachable? look at labels, class order, a too small student, terms that fight each other",
            figures,
        )  # fmt: skip
    return Finding("overfit one batch", True, f"the loss falls from {first:.3g} to {least:.3g}", figures=figures)
