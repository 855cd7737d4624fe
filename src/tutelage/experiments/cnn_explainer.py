"""CNN Explainer: the page's engine against PyTorch, the order of flattened values, the page's size, the engine's speed."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.datasets.fashion_mnist import CLASSES
from tutelage.distillation.small_models import TinyVGG
from tutelage.experiments import Experiment, Figure, Metric, better, equal
from tutelage.experiments._classification import accuracy, fashion, subset, train_student
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.cnn_explainer import CNNExplainer
from tutelage.systems.cnn_explainer.explainer import parse_page
from tutelage.systems.cnn_explainer.script import FORWARD, TIMES, run_script, script_host

ERROR, SAME, COUNT = "largest difference from PyTorch", "pictures with the same class, %", "parameters"
OTHER, ACCURACY, SIZE = "pictures with another class, %", "test accuracy, %", "page, KiB"
REQUESTS, SPEED = "addresses in the page", "times the speed of nested arrays"

LAST = """
const main = ({ model, pixels }) => {
  const ready = Engine.prepare(model);
  return pixels.map((one) => Array.from(Engine.forward(ready, Engine.normalize(one, ready.input)).at(-1)));
};
"""


def every_layer(page: CNNExplainer, host: bool) -> tuple[float, float]:
    """(largest difference over all layers and pictures, share of pictures with the same class in %) of the page's engine
    from PyTorch. Without a host for scripts, of PyTorch from itself: for smoke tests alone."""
    x = found = page.inputs()
    outputs = run_script(FORWARD, _given(page)) if host else None
    worst = 0.0
    with torch.no_grad():
        for number, layer in enumerate(page.network()):
            x = layer(x)
            found = x if outputs is None else torch.tensor([one[number] for one in outputs]).reshape(x.shape)
            worst = max(worst, (found - x).abs().max().item())
    return worst, 100 * (found.argmax(1) == x.argmax(1)).double().mean().item()


def _given(page: CNNExplainer) -> dict[str, Any]:
    return {"model": page.model_json(), "pixels": page.pixels.flatten(1).tolist()}


def engine_logits(page: CNNExplainer, host: bool) -> Tensor:
    """Logits [N, classes] of the page's pictures."""
    if not host:
        return page.network()(page.inputs())
    return torch.tensor(run_script(LAST, _given(page)))


def in_tensorflow_order(network: TinyVGG, shape: Sequence[int]) -> TinyVGG:
    """The network with the weights of its linear layer laid out for (row, column, channel): what a careless conversion gives."""
    wrong = copy.deepcopy(network)
    state = wrong.state_dict()
    state["output.weight"] = state["output.weight"].unflatten(1, tuple(shape)).permute(0, 2, 3, 1).flatten(1)
    wrong.load_state_dict(state)
    return wrong


def difference_after_reading(page: CNNExplainer, network: nn.Module) -> float:
    """Largest difference of the network inside the page from the one that was written: weights, biases and logits."""
    again = parse_page(page.html(), "the page")
    worst = [(a - b).abs().max().item() for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True)]
    with torch.no_grad():
        return max(*worst, (again(page.inputs()) - network(page.inputs())).abs().max().item())


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """An untrained TinyVGG of 64x64x3 on three pictures of noise; a smaller one trained on Fashion-MNIST."""
    host = script_host() is not None or not smoke
    network = build_with_seed(lambda: TinyVGG(), seed, "untrained").eval()
    noise = torch.randint(0, 256, (3, 3, 64, 64), generator=torch_rng(seed, "pictures"), dtype=torch.uint8)
    page = CNNExplainer(network, noise, [f"class {number}" for number in range(10)])
    html, (error, same) = page.html(), every_layer(page, host)
    arms: dict[str, Figure] = {
        "engine": {ERROR: error, SAME: same},
        "network": {COUNT: page.parameters},
        "page": {SIZE: len(html.encode()) / 1024, REQUESTS: len(re.findall(r"https?:|url\(|@import|src=", html))},
        "network read from the page": {ERROR: difference_after_reading(page, network)},
    }
    rounds = 1 if smoke else 15
    times = run_script(TIMES, _given(page) | {"pixels": noise[0].flatten().tolist(), "rounds": rounds})["times"] if host else {}
    arms["typed arrays"] = {SPEED: median(times["nested"]) / median(times["typed"]) if times else 1.0}

    train, test = fashion(seed)
    start = build_with_seed(lambda: TinyVGG(10, 8, 1, 28), seed, "trained")
    trained = train_student(start, train, steps=2 if smoke else 500, batch_size=64, lr=3e-3, warmup=20, seed=seed)
    assert isinstance(trained, TinyVGG)
    few = subset(test, torch.randperm(len(test), generator=torch_rng(seed, "few"))[: 5 if smoke else 50])
    shown = CNNExplainer(trained, few.inputs, CLASSES)
    error, same = every_layer(shown, host)
    wrong = CNNExplainer(in_tensorflow_order(trained, shown.shapes[-3]), few.inputs, CLASSES)
    right, mixed = engine_logits(shown, host).argmax(1), engine_logits(wrong, host).argmax(1)
    arms |= {
        "engine, trained network": {ERROR: error, SAME: same},
        "weights in the order row, column, channel": {OTHER: 100 * (mixed != right).double().mean().item()},
        "trained network": {ACCURACY: accuracy(trained, test)},
    }
    return arms


experiment = Experiment(
    metric=ERROR,
    higher_is_better=False,
    further_metrics=[
        Metric(SAME),
        Metric(COUNT, False),
        Metric(OTHER),
        Metric(SIZE, False),
        Metric(REQUESTS, False),
        Metric(SPEED),
        Metric(ACCURACY),
    ],
    claims=[
        equal("engine", 0.0, 1e-5),
        equal("engine, trained network", 0.0, 1e-4),
        equal("engine", 100.0, 1e-9, metric=SAME),
        equal("engine, trained network", 100.0, 1e-9, metric=SAME),
        equal("network read from the page", 0.0, 1e-12),
        better("weights in the order row, column, channel", 50.0, metric=OTHER),
        equal("network", 19_920.0, 1e-9, metric=COUNT),
        better("page", 1024.0, metric=SIZE),
        equal("page", 0.0, 1e-9, metric=REQUESTS),
        better("typed arrays", 3.0, metric=SPEED),
    ],
    run=run,
    limits="The paper's own evidence is a study with people: that it helps understanding and is enjoyable. None was made here. "
    "What is shown is that the page computes what PyTorch computes, is one small file, and is fast. The trained network "
    "(8 channels, 500 steps on Fashion-MNIST) gives numbers of a real network; its accuracy is no claim.",
)
