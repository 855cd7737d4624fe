from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.cli._comparison import cache_facts, intervals
from tutelage.cli._recipe import PACKAGED, load
from tutelage.distillation.export import load_weights
from tutelage.distillation.recipe import DataSpec, read_recipe
from tutelage.distillation.small_models import SmallCNN
from tutelage.errors import InputError

from .recipes import CACHE, tutelage, written


def result(text: str) -> dict[str, Any]:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_a_recipe_is_trained_compared_and_reported(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE)
    code, out, shown = tutelage("distill", file, "--compare", "--set", "settings.steps=12", "--json", "-")
    assert code == 0, shown
    found = result(out)
    assert found["seeds"] == [0, 1] and [run["history"][-1]["step"] for run in found["runs"]] == [12, 12]
    assert [arm["role"] for arm in found["arms"]] == ["teacher", "student", "distilled"]
    summary = found["summary"]
    low, high = summary["gain_ci95"]
    assert low < summary["gain"] < high and len(summary["verdicts"]) == 2
    assert all(verdict["met"] == (summary[name][0] > 0) for verdict, name in
               zip(summary["verdicts"], ("gain_ci95", "equal_time_gain_ci95")))  # fmt: skip
    assert all(arm["speed"]["peak_tensor_mib"] > 0 for arm in found["arms"][1:])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "share of the gradient" in page and "On disk" in page
    terms = json.loads((tmp_path / "run" / "comparison.json").read_text())["losses"]["terms"]
    for when in (0, -1):
        shares = [term["points"][when]["share"] for term in terms]
        assert sum(shares) == pytest.approx(1) and all(0 < share < 1 for share in shares)
    student = load_weights(SmallCNN(4, 4, 8), tmp_path / "run" / "seed-0" / "student.safetensors")
    assert student(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


def test_the_same_command_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert tutelage("distill", file)[0] == 0
    weights = (tmp_path / "run" / "seed-1" / "student.safetensors").read_bytes()
    log = (tmp_path / "run" / "seed-1" / "log.jsonl").read_bytes()
    assert tutelage("distill", file)[0] == 0
    assert (tmp_path / "run" / "seed-1" / "student.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "seed-1" / "log.jsonl").read_bytes() == log
    code, _, said = tutelage("distill", file, "--set", "settings.lr=0.5")
    assert code == 3 and "choose a new folder" in said


def test_students_of_different_seeds_start_from_different_weights(tmp_path: Path) -> None:
    from tutelage.cli._recipe import prepare

    job = prepare(read_recipe(written(tmp_path)))
    first, again, second = (job.training_job(seed).student.head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_a_teacher_is_trained_by_a_recipe_too(tmp_path: Path) -> None:
    file = written(tmp_path)
    text = file.read_text()
    file.write_text('method = "supervised"\n' + text[: text.index("[teacher]")] + text[text.index("[data]") :])
    code, out, said = tutelage("distill", file, "--set", "seeds=1", "--json", "-")
    assert code == 0, said
    assert [arm["role"] for arm in result(out)["arms"]] == ["distilled"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("setings.steps=3", "did you mean settings"),
        ("student.model=smal-cnn", "did you mean small-cnn"),
        ("method=kdd", "did you mean kd"),
        ("data.file=none.npz", "none.npz"),
        ("student.options.classes=5", "student and teacher disagree"),
        ("settings.steps=many", "is no int"),
    ],
)
def test_a_wrong_recipe_is_refused_with_a_remedy(tmp_path: Path, change: str, words: str) -> None:
    code, out, said = tutelage("distill", written(tmp_path), "--set", change)
    assert code == 2 and words in said and "remedy" in said and not out


def test_a_comparison_without_labels_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    code, _, said = tutelage("distill", written(tmp_path), "--compare", "--set", "data.labels=false")
    assert code == 2 and "[labelled]" in said and not (tmp_path / "run").exists()


def test_packaged_data_come_by_name_and_never_share_an_image() -> None:
    pytest.importorskip("sklearn")
    assert {"fashion-mnist", "digits", "mnist-5k"} == set(PACKAGED)
    train, test = load(DataSpec("digits"), "data", None)
    assert (len(train), len(test)) == (1400, 397) and train.inputs.shape[1:] == (1, 8, 8)
    assert 0 <= float(train.inputs.min()) and float(train.inputs.max()) <= 1
    few, _ = load(DataSpec("digits", labels=False, limit=10), "data", None)
    assert few.labels is None and torch.equal(few.inputs, train.inputs[:10])
    with pytest.raises(InputError, match="no data set"):
        load(DataSpec("imagenet"), "data", None)


def test_intervals_and_verdicts_by_hand() -> None:
    found = intervals({"gains": [1.0, 2.0, 3.0], "equal_time_gains": [-1.0, 0.0, 1.0]})
    assert found["gain_ci95"] == pytest.approx([2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)], abs=1e-3)
    assert [verdict["met"] for verdict in found["verdicts"]] == [False, False]
    assert intervals({"gains": [2.0, 2.1, 2.2], "equal_time_gains": [1.0, 1.0, 1.0]})["verdicts"][0]["met"]
    alone = intervals({"gains": [5.0], "equal_time_gains": [5.0]})
    assert alone["gain_ci95"] is None and not alone["verdicts"][0]["met"] and "seeds" in alone["verdicts"][0]["reason"]
    assert intervals({}) == {}


def test_cache_figures_count_what_a_run_read() -> None:
    facts = {"rows": 9, "bytes": 50, "dense_fp32_bytes": 100, "order": {"batch_size": 16}, "teacher": "t", "data": "d"}
    found = cache_facts(facts, 2, 10)
    assert (found["entries"], found["hits"], found["misses"]) == (9, 320, 0) and "build_seconds" not in found
    found = cache_facts(facts | {"build_seconds": 1.0, "break_even_passes": None}, 2, 10)
    assert found["break_even_steps"] is None


@pytest.mark.parametrize("name", ["fashion-teacher", "fashion-kd", "fashion-cached"])
def test_the_examples_can_be_read(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "examples" / f"{name}.toml")
    assert recipe.data.name == "fashion-mnist" and recipe.student.model == "small-cnn"


def test_students_are_exported_and_the_log_shown_where_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code, out, said = tutelage("distill", written(tmp_path), "--export", "torchscript", "--tensorboard", "--json", "-")
    assert code == 0, said
    assert result(out)["exported"] == [[str(tmp_path / "run" / f"seed-{seed}" / "student.pt")] for seed in (0, 1)]
    scripted = torch.jit.load(str(tmp_path / "run" / "seed-1" / "student.pt"))
    plain = load_weights(SmallCNN(4, 4, 8), tmp_path / "run" / "seed-1" / "student.safetensors")
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(scripted(images), plain(images), atol=1e-6)
    assert list((tmp_path / "run" / "seed-0" / "tensorboard").iterdir())


def test_an_unknown_format_is_refused_before_training(tmp_path: Path) -> None:
    code, _, said = tutelage("distill", written(tmp_path), "--export", "onx")
    assert code == 2 and "did you mean onnx" in said and not (tmp_path / "run").exists()


def test_a_recipe_names_its_task(tmp_path: Path) -> None:
    file = written(tmp_path)
    for name in ("data", "test"):
        images = np.random.default_rng(0).normal(size=(48, 1, 8, 8)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", inputs=images, labels=images[:, 0, :, :4].mean((1, 2)))
    (tmp_path / "teacher.safetensors").unlink()
    file.write_text(file.read_text().replace("classes = 4", "classes = 1").replace("weights =", "# weights ="))
    code, out, shown = tutelage("distill", file, "--compare", "--set", "settings.steps=4", "--json", "-")
    assert code == 0, shown
    arms = result(out)["arms"]
    assert [arm["calibration"] for arm in arms] == [None] * 3
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert comparison["metric"] == {"name": "R2", "unit": "", "higher_is_better": True}
    refused = {"method=dkd": "does not support the task regression", "task=segmentation": "segmentation does not fit",
               "task_options.loss=l1": "options of no task", "task=pose": "unknown task"}  # fmt: skip
    for change, words in refused.items():
        code, _, shown = tutelage("distill", file, "--set", change, "--set", f"out={tmp_path}/other")
        assert code == 2 and words in " ".join(shown.split()), (change, shown)
    code, out, shown = tutelage(
        "distill", file, "--set", "task=regression", "--set", "task_options.loss=l1", "--set", f"out={tmp_path}/l1", "--json", "-"
    )
    assert code == 0 and set(result(out)["figures"]) == {"R2", "MAE", "RMSE"}, shown


@pytest.mark.parametrize("more", ["validation = 0.25\n", '[validation]\nfile = "{folder}/test.npz"\n'])
def test_a_recipe_chooses_its_student_on_validation_data(tmp_path: Path, more: str) -> None:
    file = written(tmp_path)
    text = file.read_text().replace("steps = 20", "epochs = 3\npatience = 5\nema = 0.5\ndecay_exempt = true")
    more = more.format(folder=tmp_path)
    file.write_text(more + text if more.startswith("validation") else text + more)
    code, out, shown = tutelage("distill", file, "--set", "seeds=1", "--json", "-")
    assert code == 0, shown
    (run,) = result(out)["runs"]
    assert run["selection"]["chosen_on"] == "validation" and run["selection"]["metric"] == "accuracy"
    assert run["selection"]["last_step"] == (9 if more.startswith("validation") else 12), "a share is not learned from"
    assert (tmp_path / "run" / "seed-0" / "student-best.safetensors").exists()
    code, _, shown = tutelage("distill", file, "--set", "validation=1.5", "--out", tmp_path / "other")
    assert code == 2 and "share" in shown
