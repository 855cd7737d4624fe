from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import InputError, StaleError, StorageError
from tutelage.modules.loading import load
from tutelage.modules.rows import build_with_seed, group_by_image, hash_index, pad_ids
from tutelage.modules.visual_module import CallLabel, TrainingExamples, VisualModule, class_targets
from tutelage.programs.types import Module

from .networks import ask, check, crops, find, loc, picture, verify, vqa

MODULES = {
    "LOC": (loc, [find(image, "object") for image in crops(4)]),
    "VQA": (vqa, [ask(image, "What color is the star?") for image in crops(4)]),
    "VERIFY": (verify, [check(image, "star", "red") for image in crops(4)]),
}
each = pytest.mark.parametrize(("make", "calls"), MODULES.values(), ids=MODULES)


def changed(module: VisualModule) -> VisualModule:
    network = module.copy_network()
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    return module.with_network(network)


@each
def test_a_module_is_what_programs_call(make, calls) -> None:
    module = make()
    assert isinstance(module, Module) and not module.symbolic
    assert set(module.forward(module.encode(calls))) == set(module.heads)


@each
def test_what_is_saved_answers_the_same_when_loaded(make, calls, tmp_path: Path) -> None:
    module = make()
    again = load(module.save(tmp_path / "kept"))
    assert type(again) is type(module) and again.config == module.config
    assert again.version == module.version and again.run(calls).values == module.run(calls).values


@each
def test_the_version_is_the_weights_and_the_configuration(make, calls) -> None:
    module = make()
    assert make().version == module.version, "the same seed, the same network"
    assert make(1).version != module.version and changed(module).version != module.version


@each
def test_teaching_makes_a_new_module_and_leaves_the_old_one(make, calls) -> None:
    module = make()
    before, version = module.run(calls).values, module.version
    taught = changed(module)
    assert taught.network is not module.network and taught.name == module.name
    assert module.run(calls).values == before and module.version == version


@each
def test_running_leaves_no_gradient_and_forward_does(make, calls) -> None:
    module = make()
    assert not any(head.requires_grad for head in module.run(calls).heads.values())
    assert all(head.requires_grad for head in module.forward(module.encode(calls)).values())


def as_older_versions_wrote_it(file: Path, **change: object) -> None:
    """The head without digests, with fields changed."""
    head = json.loads(file.read_text()) | change
    file.write_text(json.dumps({name: value for name, value in head.items() if name not in ("files", "digest")}))


def test_weights_that_are_not_those_of_the_configuration_are_refused(tmp_path: Path) -> None:
    vqa().save(tmp_path / "one")
    changed(vqa()).save(tmp_path / "two")
    (tmp_path / "one" / "weights.safetensors").write_bytes((tmp_path / "two" / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="weights.safetensors: damaged"):
        load(tmp_path / "one")
    as_older_versions_wrote_it(tmp_path / "one" / "config.json")
    with pytest.raises(StaleError, match="weights.safetensors"):
        load(tmp_path / "one")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    verify().save(tmp_path / "one")
    loc().save(tmp_path / "two")
    (tmp_path / "one" / "weights.safetensors").write_bytes((tmp_path / "two" / "weights.safetensors").read_bytes())
    as_older_versions_wrote_it(tmp_path / "one" / "config.json")
    with pytest.raises(InputError, match="weights of another network"):
        load(tmp_path / "one")


@pytest.mark.parametrize("left", [0, 7, 200])
def test_a_file_of_weights_cut_short_is_refused(left: int, tmp_path: Path) -> None:
    file = vqa().save(tmp_path) / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(InputError, match="weights.safetensors"):
        load(tmp_path)


VOCABULARY = {"answers": [["color", ["red"]]], "nouns": ["cube"]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": "other"}, "not a module folder"),
    ({"format": ["tutelage-module"]}, "not a module folder"),
    ({"class": "Nothing"}, "unknown class of module 'Nothing'"),
    ({"class": ["Vqa"]}, "not a text"),
    ({"class": None}, "'class' is missing"),
    ({"config": None}, "'config' is missing"),
    ({"config": []}, "not an object"),
    ({"config": {"width": 4}}, "not a configuration of Vqa"),
    ({"config": {"vocabulary": VOCABULARY, "width": -4, "pixels": 32}}, "width: -4 is below 0"),
    ({"config": {"vocabulary": VOCABULARY, "width": "4", "pixels": 32}}, "width: '4' is not a whole number"),
    ({"config": {"vocabulary": VOCABULARY, "width": 10**9, "pixels": 32}}, "width: 1,000,000,000 is above"),
    ({"config": {"vocabulary": VOCABULARY, "width": 90_000, "pixels": 32}}, "weights of another network"),
    ({"config": {"vocabulary": VOCABULARY, "width": True, "pixels": 32}}, "not a whole number"),
    ({"config": {"vocabulary": {"answers": 3, "nouns": []}, "width": 4, "pixels": 32}}, "not a configuration of Vqa"),
    ({"config": {"vocabulary": {"answers": [["color", [1]]], "nouns": []}, "width": 4, "pixels": 32}}, "not a text"),
    ({"name": 3}, "not a text"),
    ({"version": {}}, "not a text"),
    ({"secret": 1}, "unknown fields"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=range(len(WRONG)))
def test_a_configuration_that_is_none_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = vqa().save(tmp_path) / "config.json"
    as_older_versions_wrote_it(file, **change)
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value.where) and caught.value.remedy


def test_any_bit_of_a_folder_is_noticed(tmp_path: Path) -> None:
    vqa().save(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("config.json", "weights.safetensors")}

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from(sorted(whole)), st.data())
    def damaged(name: str, data: st.DataObject) -> None:
        bit = data.draw(st.integers(0, 8 * len(whole[name]) - 1))
        changed = bytearray(whole[name])
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(changed)
        try:
            with pytest.raises(InputError) as caught:
                load(tmp_path)
            assert str(tmp_path / name) in str(caught.value.where) and caught.value.remedy
        finally:
            (tmp_path / name).write_bytes(whole[name])

    damaged()
    load(tmp_path)


def test_weights_linked_to_a_device_are_refused(tmp_path: Path) -> None:
    file = vqa().save(tmp_path) / "weights.safetensors"
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path)
    as_older_versions_wrote_it(tmp_path / "config.json")
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path)


def test_a_folder_without_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json"):
        load(tmp_path / "absent")


def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        vqa().save(tmp_path / "file" / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_module_learns_from_its_own_calls_alone() -> None:
    """Isolation: an exercise of one module holds nothing of another's network or calls."""
    one, other = vqa(), verify()
    exercise = one.training_examples([ask(image, "Is the star red?") for image in crops(2)], [CallLabel("yes"), CallLabel("no")])
    assert set(exercise.targets) == set(one.heads) and not set(one.heads) & set(other.heads)
    kept = other.version
    for parameter in one.copy_network().parameters():
        parameter.data.zero_()
    other._version = None
    assert other.version == kept and one.version == vqa().version


# What the parts share


def test_class_targets_are_ids_and_probabilities() -> None:
    hard, soft = class_targets([CallLabel("b"), CallLabel("a", {"a": 0.75, "b": 0.25})], ["a", "b"], "X")
    assert hard.tolist() == [1, 0] and soft.tolist() == [[0, 1], [0.75, 0.25]]
    with pytest.raises(InputError, match="'c' is no answer of X"):
        class_targets([CallLabel("c")], ["a", "b"], "X")


def test_rows_share_a_key_and_hold_so_many_at_most() -> None:
    assert group_by_image(["a", "b", "a", "a", "b"], 2) == [[0, 2], [1, 4], [3]]
    assert pad_ids([[1, 2], [], [3]]).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert all(0 <= hash_index(("key", i), 7) < 7 for i in range(50)) and len({hash_index(i, 7) for i in range(50)}) == 7


def test_a_seeded_network_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (build_with_seed(3, lambda: torch.nn.Linear(2, 2)) for _ in range(2))
    assert torch.equal(torch.rand(1), expected) and torch.equal(one.weight, two.weight)


def test_an_exercise_is_as_long_as_its_rows() -> None:
    exercise = TrainingExamples({"x": torch.zeros(3, 2)}, {}, torch.ones(3))
    assert len(exercise) == 3
    assert picture(1).key != picture(2).key
