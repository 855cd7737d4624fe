"""SiT on Fashion-MNIST without labels: what each of its tasks leaves in the states, and where the learned weights come to rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from statistics import fmean
from typing import cast

import torch
from torch import Tensor

from tutelage.distillation import probes
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better, equal
from tutelage.experiments._classification import fashion
from tutelage.networks.vit import VisionTransformer
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.sit_ssl import SiT, masked_l1, nt_xent, replace_blocks

TURNS = "turn of held-out images by a linear probe of the rotation token on 100, %"
PAIRS = "NT-Xent of held-out views from the standardised contrast token"
L1, CLASSES = "L1 error on replaced pixels", "class of held-out images by a linear probe, %"
GAP, OWN = "s less log(2 a L)", "turn of held-out images by SiT's own head, %"


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """4,000 images of 28x28 without labels, 700 steps; patches of 7, width 64, 3 blocks; two crops with quarter turns, noise and
    blocks of other images.

    Arms: the network as it starts; reconstruction alone; SiT, all three tasks. They are compared on their states alone, read by
    the same probes; heads are not compared.
    """
    everything, held = fashion(seed)
    rng = torch_rng(seed, "sit")
    images = everything.inputs[torch.randperm(len(everything), generator=rng)[: 64 if smoke else 4000]]
    labelled = torch.randperm(len(everything), generator=rng)[: 100 if smoke else 2000]
    chosen = torch.randperm(len(held), generator=rng)[: 60 if smoke else 1500]
    seen, unseen = (TensorData(data.inputs[rows], data.labels[rows]) for data, rows in ((everything, labelled), (held, chosen)))
    start = build_with_seed(
        lambda: VisionTransformer(28, 7, 64, 3, 4, 1, tokens={"rotation": 1, "contrast": 1}, pool="contrast"), seed, "vit"
    )
    settings = TrainingSettings(
        steps=4 if smoke else 700,
        batch_size=48,
        lr=1e-3,
        warmup=2 if smoke else 50,
        weight_decay=0.05,
        seed=seed,
        log_every=2 if smoke else 50,
    )

    def pretrained(**tasks: bool) -> tuple[VisionTransformer, SiT, dict[str, float]]:
        method = SiT(weights_lr=60.0, flip=0.0, soften=False, **tasks)
        done = train(TrainingJob(copy.deepcopy(start), None, method, images, settings))
        return cast(VisionTransformer, done.student), method, done.history[-1]["terms"]

    arms: dict[str, Figure] = {"untrained": states_figures(start.eval(), seen, unseen, seed)}
    for name, tasks in (("reconstruction alone", {"rotation": False, "contrast": False}), ("SiT", {})):
        network, method, terms = pretrained(**tasks)
        arms[name] = states_figures(network, seen, unseen, seed) | {L1: painted_error(network, method, unseen.inputs, seed)}
    turned, turns = turned_images(unseen.inputs, seed, "test")
    with torch.no_grad():
        own = method.heads(network, turned)["rotation"].argmax(1)
    assert isinstance(arms["SiT"], dict)
    arms["SiT"][OWN] = probes.accuracy(own, turns)
    arms["input as it is"] = {L1: painted_error(None, method, unseen.inputs, seed)}
    optimum = method.task_weights.optimum({task: terms[task] for task in method.task_weights.factors})
    for (task, best), s in zip(optimum.items(), method.task_weights.s.tolist(), strict=True):
        arms[f"weight of {task}"] = {GAP: s - best}
    return arms


def turned_images(images: Tensor, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Each image by a random quarter turn; and the turns [N]."""
    turns = torch.randint(4, (len(images),), generator=torch_rng(seed, "turns", split))
    turned = images.clone()
    for quarter in (1, 2, 3):
        turned[turns == quarter] = torch.rot90(images[turns == quarter], quarter, (2, 3))
    return turned, turns


@torch.no_grad()
def states(network: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """Both tokens and the mean patch by name, and ``all`` of them side by side: [N, dim], [N, 3 dim]."""
    parts = [network.forward_features(part) for part in images.split(500)]
    found = {name: torch.cat([part[name].mean(1) for part in parts]) for name in ("rotation", "contrast", "patches")}
    return {**found, "all": torch.cat(list(found.values()), 1)}


def states_figures(network: VisionTransformer, seen: TensorData, unseen: TensorData, seed: int) -> dict[str, float]:
    """What the same probes read from a network's states; turns: the mean over five sets of 100 images to learn from."""
    features, queries = states(network, seen.inputs)["all"], states(network, unseen.inputs)["all"]
    classes = probes.accuracy(probes.linear_predict(features, seen.labels, queries), unseen.labels)
    (turned, turns), (test, answers) = turned_images(seen.inputs, seed, "train"), turned_images(unseen.inputs, seed, "test")
    known, queried = states(network, turned)["rotation"], states(network, test)["rotation"]
    sets = list(zip(known.split(100), turns.split(100)))[:5]
    read = [probes.accuracy(probes.linear_predict(vectors, wanted, queried), answers) for vectors, wanted in sets]
    return {TURNS: fmean(read), CLASSES: classes, PAIRS: pair_loss(network, unseen.inputs, seed)}


def pair_loss(network: VisionTransformer, images: Tensor, seed: int) -> float:
    """NT-Xent of the contrast token, standardised over all views: two clean, turned crops of each image, in groups of 96 views."""
    clean = SiT().two_views(images, torch_rng(seed, "pairs"))[0]
    vectors = states(network, clean)["contrast"]
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp_min(1e-6)
    groups = zip(*(half.split(48) for half in vectors.chunk(2)))
    found = [nt_xent(torch.cat(pair)).item() for pair in groups if len(pair[0]) == min(48, len(images))]
    return fmean(found)


@torch.no_grad()
def painted_error(network: VisionTransformer | None, method: SiT, images: Tensor, seed: int) -> float:
    """On pixels that noise or another image replaced; without a network, of the corrupted image itself."""
    corrupted, mask = replace_blocks(images, torch_rng(seed, "blocks"))
    return masked_l1(corrupted if network is None else method.heads(network, corrupted)["reconstruction"], images, mask).item()


experiment = Experiment(
    metric=TURNS,
    further_metrics=[Metric(PAIRS, False), Metric(L1, False), Metric(GAP), Metric(CLASSES), Metric(OWN)],
    claims=[
        *(better("SiT", than) for than in ("reconstruction alone", "untrained")),
        *(better("SiT", than, metric=PAIRS) for than in ("reconstruction alone", "untrained")),
        better("SiT", "input as it is", metric=L1),
        *(equal(f"weight of {task}", 0.0, 0.05, metric=GAP) for task in ("reconstruction", "rotation", "contrast")),
    ],
    run=run,
    limits="Networks of 150,000 parameters on 4,000 small images, 700 steps; the published tables are of 224 pixels and 500 "
    "epochs. Neither mirrored nor softened: on selection seed 100 turns were not learned in 700 steps (loss 1.386, chance) with "
    "mirror images, with or without grey and blurred rectangles, and slowly with crops of 0.7 to 1. No accuracy on classes is "
    "claimed: there linear probes gave 74 to 76 % in all three arms, and it is reported. Turns are what SiT is trained on: that "
    "they can be read from its states shows that the task is learned, not that it helps.",
)
