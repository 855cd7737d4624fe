"""`tutelage probe`: the figures of its probes, where data and encoders come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.distillation.export import save_weights
from tutelage.distillation.probes import accuracy, knn_predict, linear_predict, probe_scores
from tutelage.distillation.small_models import SmallCNN
from tutelage.errors import InputError
from tutelage.seeds import torch_rng


def clouds(count: int, seed: int, apart: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clouds in four dimensions: features [count, 4], labels [count]."""
    labels = torch.arange(count) % 3
    return apart * torch.eye(4)[labels] + torch.randn(count, 4, generator=torch_rng(seed, "clouds")), labels


def images(path: Path, count: int = 60) -> Path:
    """Three kinds of images: dark, middle, bright."""
    labels = np.arange(count) % 3
    pixels = labels[:, None, None, None] / 3 + 0.1 * np.random.default_rng(0).random((count, 1, 8, 8))
    np.savez(path, inputs=pixels.astype(np.float32), labels=labels)
    return path


def run_probe(*arguments: str | Path) -> str:
    ran = CliRunner().invoke(main.app, ["probe", *map(str, arguments)])
    return ran.output if ran.exit_code == 0 else f"exit {ran.exit_code}: {ran.output}"


def test_probes_read_clouds_that_lie_apart_and_guess_where_they_do_not() -> None:
    near, far = ((*clouds(90, 0, apart), *clouds(300, 1, apart)) for apart in (0.0, 6.0))
    assert min(probe_scores(*far, k=5, per_class=3).values()) > 95
    assert max(probe_scores(*near, k=5, per_class=3).values()) < 50


def test_each_figure_is_that_of_its_probe() -> None:
    features, labels, queries, answers = (*clouds(90, 0, 1.5), *clouds(300, 1, 1.5))
    found = probe_scores(features, labels, queries, answers, k=5, per_class=30, draws=2)
    linear = accuracy(linear_predict(features, labels, queries), answers)
    assert found["linear"] == linear
    assert found["30 labels a class"] == pytest.approx(linear)  # a class has 30: every draw is all of them
    assert found["kNN"] == accuracy(knn_predict(features, labels, queries, 5, temperature=0.07), answers)
    with pytest.raises(InputError, match="31 are wanted"):
        probe_scores(features, labels, queries, answers, k=5, per_class=31)


def test_a_named_network_with_weights_on_a_file_of_which_a_fifth_is_held_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = save_weights(SmallCNN(3, 4, 8), tmp_path / "student.safetensors")
    settings = ["--set", f"weights={weights}", "--set", "options.classes=3", "--set", "options.channels=4"]
    out = tmp_path / "probe.json"
    printed = run_probe(
        "small-cnn", *settings, "--set", "options.embedding=8", "--layer", "body", "--data", images(tmp_path / "data.npz"),
        "--per-class", "4", "--json", out,
    )  # fmt: skip
    assert "labels a class" in printed, printed
    found = json.loads(out.read_text())
    assert (found["samples"], found["scored"], found["layer"]) == (48, 12, "body")
    assert found["probes"]["linear"]["mean"] > 90 and found["probes"]["linear"]["sd"] is None


def test_test_data_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "probe.json"
    data, test = images(tmp_path / "data.npz"), images(tmp_path / "test.npz", 9)
    printed = run_probe("small-cnn", "--data", data, "--test", test, "--limit", "30", "--per-class", "2", "--json", out)
    assert not printed.startswith("exit"), printed
    found = json.loads(out.read_text())
    assert (found["samples"], found["scored"]) == (30, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small-cnn"], "no data to probe on"),
        (["small-cnn", "--data", "nothing"], "no data set 'nothing'"),
        (["small-cn", "--data", "digits"], "small-cn"),
        (["small-cnn", "--data", "digits", "--layer", "layer9"], "no layer 'layer9'"),
        (["small-cnn", "--data", "digits", "--per-class", "5000"], "5000 are wanted"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    printed = run_probe(*arguments)
    assert printed.startswith("exit 2") and message in printed and "remedy" in printed


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    assert "no recipe.json" in run_probe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"student": {"model": "small-cnn"}, "data": {"name": "digits"}}')
    assert "no student yet" in run_probe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"student": {"model": "small-cnn"}}')
    assert "recipe.json" in run_probe(tmp_path)
