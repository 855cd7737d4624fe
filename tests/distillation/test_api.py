"""The verb, recipes, and export."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tutelage
from tutelage.distillation.api import distill, methods
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData
from tutelage.distillation.export import check_formats, load_weights, save_formats, save_onnx, save_torchscript, save_weights
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.recipe import DataSpec, ModelSpec, Recipe, read_recipe
from tutelage.distillation.resolve import build_model, load_data
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import BlackBoxTeacher
from tutelage.errors import InputError, MissingExtra, StaleError

from .toy import Distil, Net, bits, samples

QUICK = {"steps": 12, "batch_size": 16, "lr": 0.01}


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return samples(40).inputs[i], int(samples(40).labels[i])


def score(network: nn.Module) -> dict[str, float]:
    data = samples()
    return {"accuracy": float((network(data.inputs).argmax(1) == data.labels).float().mean())}


def test_the_package_is_the_verb_and_takes_a_users_own_dataset() -> None:
    student = Net()
    before = bits(student)
    done = tutelage.distill(student, Net(16, seed=1), Points(), Distil, **QUICK)
    assert bits(student) == before != bits(done.student) and not done.student.training
    assert done.student(torch.zeros(2, 4)).shape == (2, 3)


def test_a_registered_method_is_found_by_name_and_a_typo_gets_a_hint() -> None:
    done = distill(Net(), Net(16, seed=1), samples(), "kd", options={"tau": 2.0}, **QUICK)
    assert set(done.results[0].history[-1]["terms"]) == {"kd", "label"}
    with pytest.raises(InputError, match="did you mean"):
        distill(Net(), Net(), samples(), "nd-los", **QUICK)
    with pytest.raises(InputError, match="no option 'taw'"):
        distill(Net(), Net(), samples(), "kd", options={"taw": 2.0}, **QUICK)
    with pytest.raises(InputError, match="did you mean steps"):
        distill(Net(), Net(), samples(), "kd", step=3)


def test_a_method_by_name_is_a_method_and_labels_alone_are_one() -> None:
    done = distill(Net(), None, samples(), "supervised", **QUICK)
    plain = distill(Net(), None, samples(), Supervised, **QUICK)
    assert bits(done.student) == bits(plain.student)
    with pytest.raises(InputError, match="no distillation method") as caught:
        distill(Net(), Net(), samples(), "xyz", **QUICK)
    assert caught.value.where == "method" and "supervised" in caught.value.remedy and "kd" in caught.value.remedy
    offered = set(caught.value.remedy.removeprefix("known: ").split(", "))
    assert offered == set(methods()), "no backbones among them"
    with pytest.raises(InputError, match="the backbone hornet is no distillation method"):
        distill(Net(), Net(), samples(), "hornet", **QUICK)


def test_the_signature_shows_each_setting() -> None:
    shown = inspect.signature(tutelage.distill).parameters
    assert list(shown)[:4] == ["student", "teacher", "data", "method"] and shown["method"].default == "kd"
    for item in dataclasses.fields(TrainingSettings):
        assert shown[item.name].default == getattr(TrainingSettings(), item.name)
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in shown.values())


def test_another_function_of_the_same_name_never_reads_the_first_ones_answers(tmp_path: Path) -> None:
    def teacher(scale: float):
        def ask(x):
            return scale * x[:, :3]

        return ask

    distill(Net(), teacher(1), samples(), Distil, cache=tmp_path, **QUICK)
    again = distill(Net(), teacher(1), samples(), Distil, cache=tmp_path, **QUICK)
    assert sum(again.queries.values()) < 60, "the answers were there"
    with pytest.raises(StaleError, match="teacher"):
        distill(Net(), teacher(2), samples(), Distil, cache=tmp_path, **QUICK)


def test_a_layer_that_is_not_there_is_named_with_network_and_option() -> None:
    with pytest.raises(InputError, match="the teacher Sequential has no layer 'blocks.1.attn'") as caught:
        network = nn.Sequential(OrderedDict(embed=nn.Embedding(20, 8), attn=nn.Linear(8, 8)))
        tokens = TensorData(torch.randint(0, 20, (20, 6)))
        options = {"student": ("attn",), "teacher": ("blocks.1.attn",)}
        distill(network, network, tokens, "minilm", options=options, **QUICK)
    assert caught.value.where == "options.teacher" and "did you mean attn" in caught.value.remedy


def test_a_method_that_needs_heads_names_them() -> None:
    data = TensorData(torch.rand(20, 1, 8, 8), torch.arange(20) % 3)

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(InputError, match="with the heads cls, dist; Sequential lacks cls, dist") as caught:
        distill(network(), network(), data, "deit-lt", **QUICK)
    assert caught.value.where == "student" and "it has logits" in caught.value.remedy

    class Reads(Distil):
        def loss_terms(self, batch, student, teacher):
            return {"soft": (student["logits"] - teacher["tokens"]).square().mean()}

    with pytest.raises(InputError, match="Sequential has no head 'tokens'"):
        distill(network(), network(), data, Reads, **QUICK)


def test_seeds_give_paired_runs_and_a_summary_on_disk(tmp_path: Path) -> None:
    done = distill(Net, Net(16, seed=1), samples(), Distil, seeds=3, out=tmp_path, evaluate=score, **QUICK)
    assert done.seeds == [0, 1, 2] and len({str(bits(r.student)) for r in done.results}) == 3
    figures = done.metrics["accuracy"]
    assert figures["mean"] == pytest.approx(np.mean(figures["seeds"])) and figures["sd"] == pytest.approx(
        np.std(figures["seeds"], ddof=1)
    )
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["format"] == "tutelage-distillation" and len(found["runs"]) == 3
    assert load_weights(Net(), tmp_path / "seed-1" / "student.safetensors").inner.weight.equal(done.results[1].student.inner.weight)
    again = distill(Net, Net(16, seed=1), samples(), Distil, seeds=[1], **QUICK)
    assert bits(again.student) == bits(done.results[1].student)


def test_a_cache_changes_nothing_but_who_answers(tmp_path: Path) -> None:
    plain = distill(Net(), Net(16, seed=1), samples(), Distil, seeds=2, **QUICK)
    cached = distill(Net(), Net(16, seed=1), samples(), Distil, seeds=2, cache=tmp_path, **QUICK)
    for a, b in zip(plain.results, cached.results, strict=True):
        for p, q in zip(a.student.parameters(), b.student.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6)
    assert cached.cache["rows"] >= 60 and not list(tmp_path.glob("seed-*"))


def test_views_that_never_repeat_get_a_cache_a_seed(tmp_path: Path) -> None:
    data = TensorData(torch.rand(20, 1, 4, 4), torch.arange(20) % 3, views=Augmentation(flip=0.5))
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    told: list[str] = []
    distill(network, network, data, Distil, seeds=2, cache=tmp_path, progress=lambda what, *_: told.append(what), **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    assert any("pays off" in what for what in told) and "seed 1" in told

    class Own(Distil):
        deterministic_teacher = False

    with pytest.raises(InputError, match="inputs of its own making"):
        distill(network, network, data, Own, cache=tmp_path, **QUICK)


def test_queries_to_a_black_box_are_counted_over_all_seeds_and_a_cache_asks_once(tmp_path: Path) -> None:
    box = BlackBoxTeacher(lambda x: x[:, :3], version="model of May")
    done = distill(Net(), box, samples(), Distil, seeds=2, out=tmp_path / "a", **QUICK)
    assert done.queries == {"model of May": 2 * QUICK["steps"] * QUICK["batch_size"]}
    assert json.loads((tmp_path / "a" / "result.json").read_text())["queries"] == done.queries
    again = BlackBoxTeacher(box.function, version="model of May")
    distill(Net(), again, samples(), Distil, seeds=2, out=tmp_path / "a", **QUICK)
    assert again.queries == box.queries, "a finished run that is read back asks nothing"
    cached = distill(Net(), BlackBoxTeacher(box.function, version="b"), samples(), Distil, seeds=2, cache=tmp_path / "c", **QUICK)
    more = distill(Net(), BlackBoxTeacher(box.function, version="b"), samples(), Distil, seeds=2, cache=tmp_path / "c", **QUICK)
    assert 60 <= cached.queries["b"] < 2 * 60 + 200 and more.queries["b"] < cached.queries["b"]


def test_training_on_labels_alone_needs_no_teacher() -> None:
    done = distill(Net(), None, samples(), Supervised, steps=150, lr=0.03, evaluate=score)
    assert done.metrics["accuracy"]["mean"] > 0.8


RECIPE = """
method = "kd"
seeds = 2
[student]
model = "m"
options = { width = 8 }
[teacher]
model = "timm:resnet18"
weights = "t.safetensors"
[data]
file = "d.npz"
[options]
tau = 2
[settings]
steps = 10
betas = [0.9, 0.99]
[views]
crop = 2
resize = [0.5, 1]
[cache]
folder = "c"
store = { logits = "top5" }
"""


def recipe(folder: Path, text: str = RECIPE, *overrides: str) -> Recipe:
    (folder / "r.toml").write_text(text)
    return read_recipe(folder / "r.toml", overrides)


def test_a_recipe_becomes_typed_values(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    assert found.student == ModelSpec("m", {"width": 8}) and found.data == DataSpec(file="d.npz")
    assert found.settings == TrainingSettings(steps=10, betas=(0.9, 0.99)) and found.views == Augmentation(
        crop=2, resize=(0.5, 1.0)
    )
    assert found.cache.store == {"logits": "top5"} and found.options == {"tau": 2}


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    found = recipe(tmp_path, RECIPE, "settings.lr=0.5", "student.model=other", "seeds=5", "settings.clip=1")
    assert (found.settings.lr, found.student.model, found.seeds, found.settings.clip) == (0.5, "other", 5, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE.replace("steps", "stepps"), ("settings.stepps", "did you mean steps")),
        (RECIPE.replace("steps = 10", 'steps = "ten"'), ("settings.steps", "'ten' is no int")),
        (RECIPE.replace("steps = 10", "steps = true"), ("settings.steps", "True is no int")),
        (RECIPE.replace("[student]\nmodel", "[student]\nname"), ("student.name", "unknown key")),
        (RECIPE.replace('model = "m"\n', ""), ("student", "'model' is missing")),
        (RECIPE.replace("[0.9, 0.99]", "[0.9]"), ("settings.betas", "1 values, not 2")),
        (RECIPE.replace("steps = 10", 'optimizer = "adam"'), ("settings.optimizer", "did you mean adamw")),
        (RECIPE.replace("steps = 10", "batch_size = 0"), ("settings.batch_size", "too small")),
        (RECIPE.replace('file = "d.npz"', ""), ("data", "either a name or a file")),
        (RECIPE.replace("seeds = 2", "seeds ="), ("not TOML", "line 3")),
        (RECIPE.replace("[views]", "[view]"), ("view", "did you mean views")),
        (RECIPE.replace("[cache]\nfolder", "[[cache]]\nfolder"), ("cache", "no table")),
    ],
)
def test_a_wrong_recipe_names_the_key(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        recipe(tmp_path, text)
    for word in ("r.toml", *words):
        assert word in str(caught.value)


def test_wrong_overrides_and_absent_files_are_typed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an override"):
        recipe(tmp_path, RECIPE, "steps")
    with pytest.raises(InputError, match="no table"):
        recipe(tmp_path, RECIPE, "seeds.x=1")
    with pytest.raises(InputError, match="no such file"):
        read_recipe(tmp_path / "none.toml")


def test_models_are_named_never_called(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown system"):
        build_model(ModelSpec("torch.nn.Linear"))
    with pytest.raises(InputError, match="unknown source"):
        build_model(ModelSpec("os:system"))
    with pytest.raises(InputError, match="no network"):
        build_model(ModelSpec("kd"))


def test_arrays_are_read_without_pickle(tmp_path: Path) -> None:
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2), np.array([1, 0], dtype=np.int32)
    np.savez(tmp_path / "d.npz", inputs=images, labels=labels)
    data = load_data(DataSpec(file=str(tmp_path / "d.npz")))
    assert data.inputs.max() == pytest.approx(23 / 255) and data.labels.dtype == torch.int64
    save_file({"inputs": torch.zeros(3, 2)}, tmp_path / "d.safetensors")
    assert load_data(DataSpec(file=str(tmp_path / "d.safetensors"), limit=2)).inputs.shape == (2, 2)
    np.savez(tmp_path / "p.npz", inputs=np.array([{"a": 1}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:80])
    (tmp_path / "x.csv").write_text("1")
    np.savez(tmp_path / "n.npz", images=images)
    for name in ("p.npz", "cut.npz", "x.csv", "n.npz", "absent.npz"):
        with pytest.raises(InputError) as caught:
            load_data(DataSpec(file=str(tmp_path / name)))
        assert name in str(caught.value)


def test_weights_round_trip_and_refuse_others(tmp_path: Path) -> None:
    path = save_weights(Net(seed=3), tmp_path / "w.safetensors")
    assert bits(load_weights(Net(), path)) == bits(Net(seed=3))
    with pytest.raises(InputError, match=r"head\.bias has shape \(3,\)"):
        load_weights(Net(classes=5), path)
    with pytest.raises(InputError, match="is not in the"):
        load_weights(nn.Linear(2, 2), path)
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="not readable safetensors"):
        load_weights(Net(), tmp_path / "w.pt")


def test_torchscript_runs_without_this_library(tmp_path: Path) -> None:
    net = Net().eval()
    path = save_torchscript(net, torch.zeros(2, 4), tmp_path / "s.pt")
    x = torch.randn(5, 4)
    assert torch.allclose(torch.jit.load(str(path))(x), net(x), atol=1e-6)


def test_an_onnx_student_answers_the_same_for_a_batch_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = Net(norm=True).eval()
    path = save_onnx(net, torch.zeros(2, 4), tmp_path / "s.onnx")
    written = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = torch.randn(rows, 4)
        (said,) = written.run(None, {"input": x.numpy()})
        assert np.allclose(said, net(x).detach().numpy(), atol=1e-5)


def test_formats_are_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net().train()
    (path,) = save_formats(net, torch.zeros(2, 4), tmp_path, ["torchscript"])
    assert path == tmp_path / "student.pt" and net.training
    with pytest.raises(InputError, match="did you mean torchscript"):
        check_formats(["torchscipt"])
    monkeypatch.setitem(sys.modules, "onnx", None)
    for refused in (lambda: check_formats(["onnx"]), lambda: save_onnx(net, torch.zeros(2, 4), tmp_path / "s.onnx")):
        with pytest.raises(MissingExtra, match="onnx") as caught:
            refused()
        assert "tutelage[onnx]" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["student.pt"]


def test_a_bar_is_shown_by_default_where_a_terminal_watches(capsys, monkeypatch) -> None:
    def shown(**how) -> str:
        distill(Net(), Net(16, seed=1), samples(), "kd", seeds=2, **how, **QUICK)
        return capsys.readouterr().err

    assert shown() == "", "standard error is no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "kd seed" in shown()
    assert shown(progress=False) == ""
    calls: list[tuple[str, int, int]] = []
    assert shown(progress=lambda *what: calls.append(what)) == ""
    assert calls[0] == ("seed 0", 1, 12) and calls[-1] == ("seed 1", 12, 12)
