from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.errors import InputError, StaleError
from tutelage.programs.trace import RecordOrigin, StepRecord
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.baselines import RoutedModule
from tutelage.sdvp.collect import call_of, collect, gold_forcing, load_records, save_records
from tutelage.sdvp.label import label, label_of
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import solve
from tutelage.sdvp.stages import collect_to_folder, label_to_folder, train_to_folder
from tutelage.sdvp.teachers import ModuleTeacher, from_callable

from . import small

TWO = (
    "ANSWER0=COLOR(image=IMAGE)\nANSWER1=TINT(image=IMAGE)\nANSWER2=COLOR(image=IMAGE)\n"
    'ANSWER3=EVAL(expr="{ANSWER0} == {ANSWER1}")\nFINAL_RESULT=RESULT(var=ANSWER3)'
)


class Tint(small.Color):
    name = "TINT"


def both() -> dict:
    return small.modules(TINT=Tint.with_classes(*small.COLORS, pixels=8, seed=1))


def test_each_distinct_call_is_kept_once_under_its_module() -> None:
    asked = [*small.questions(3, programs={"visprog": TWO}), *small.questions(2)]
    asked = [replace(q, id=f"{n}") for n, q in enumerate(asked)]
    found = collect(asked, both())
    assert set(found) == {"COLOR", "TINT"}, "symbolic modules are not collected"
    assert len(found["TINT"]) == 3, "one a picture"
    assert len(found["COLOR"]) == 3 + 2, "whole pictures once, whatever the step, and two crops"
    for name, rows in found.items():
        assert all(row.module == name for row in rows)
        assert len({row.input_hash for row in rows}) == len(rows)


def test_failed_calls_are_not_collected() -> None:
    modules = small.modules()
    modules["COLOR"] = RoutedModule(small.color(), ModuleTeacher("t", "1", lambda call: False, lambda calls: []), replaced=True)
    assert collect(small.questions(2), {**modules, "TINT": Tint.with_classes(*small.COLORS)}) == {"TINT": []}


def test_on_policy_and_forced_runs_see_different_inputs() -> None:
    """MIDDLE as a trainable module's stand-in: what the teacher says upstream decides the crop downstream."""
    where = from_callable(lambda calls: [[Box(0, 0, 4, 4)]] * len(calls))
    program = small.PROGRAM
    asked = small.questions(2, programs={"visprog": program})
    plain, forced = collect(asked, small.modules()), collect(asked, small.modules(), teacher_forced={"MIDDLE": where})
    assert plain["COLOR"][0].args["image"].region != forced["COLOR"][0].args["image"].region


def test_gold_values_replace_answers_step_by_step() -> None:
    asked = [replace(q, gold={"visprog": [None, None, "green", None]}) for q in small.questions(2)]
    traces = solve(asked, small.modules(), substitute=gold_forcing(asked, "visprog"))
    assert [t.answer for t in traces] == ["green", "green"]
    assert [r.substituted for r in traces[0].steps if r.module == "COLOR"] == [True]


def test_records_with_labels_survive_their_files(tmp_path: Path) -> None:
    found = collect(small.questions(4), small.modules())
    labelled = {"COLOR": label(found["COLOR"], small.color(), from_callable(small.brightest))}
    save_records(labelled, tmp_path)
    again = load_records(tmp_path)
    assert [r.to_json(timing=False) for r in again["COLOR"]] == [r.to_json(timing=False) for r in labelled["COLOR"]]
    for old, new in zip(labelled["COLOR"], again["COLOR"], strict=True):
        assert (call_of(old).args["image"].bytes == call_of(new).args["image"].bytes).all()
        assert label_of(old) == label_of(new) and old.input_hash == new.input_hash
    module = small.color()
    assert module.run([call_of(r) for r in again["COLOR"]]).values == [r.output for r in labelled["COLOR"]]


def test_labels_that_are_boxes_survive_too(tmp_path: Path) -> None:
    from tutelage.modules.detection import Loc, LocConfig

    image = small.picture(0, "red", 48)
    record = StepRecord(RecordOrigin("q"), 0, 0, "LOC", "v", {"image": image, "object": "circle"})
    module = Loc.build(LocConfig(("circle", "star"), 4), 0)
    teacher = from_callable(lambda calls: [[Box(1, 2, 30, 40, 0.9)], []][: len(calls)])
    save_records({"LOC": label([record], module, teacher)}, tmp_path)
    (again,) = load_records(tmp_path)["LOC"]
    assert label_of(again).value == [Box(1, 2, 30, 40, 0.9)] and isinstance(label_of(again).value[0], Box)
    assert module.training_examples([call_of(again)], [label_of(again)]).targets["size"]["peaks"].sum() == 1


def test_equal_pictures_are_stored_once(tmp_path: Path) -> None:
    save_records(collect(small.questions(3, programs={"visprog": TWO}), both()), tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 3


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "COLOR.jsonl").write_text('{"step": 0, "mod'), "COLOR.jsonl:1"),
        (lambda folder: (folder / "COLOR.jsonl").write_text('{"step": 0, "call_no": 0, "module": "COLOR"}\n'), "module_version"),
        (lambda folder: next((folder / "images").iterdir()).unlink(), "no such image"),
        (lambda folder: next((folder / "images").iterdir()).write_bytes(b"not a png"), "cannot read this as an image"),
        (lambda folder: (folder / "COLOR.jsonl").unlink(), "no step records here"),
    ],
    ids=["cut line", "missing field", "lost picture", "broken picture", "nothing"],
)
def test_broken_records_are_named(tmp_path: Path, break_it, words: str) -> None:  # noqa: ANN001
    save_records(collect(small.questions(1), small.modules()), tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=words):
        load_records(tmp_path)


def lines(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_collecting_in_parts_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    asked, modules = small.questions(10), small.modules()
    collect_to_folder(tmp_path / "whole", asked, modules, shard_size=4)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        collect_to_folder(tmp_path / "cut", asked, modules, shard_size=4, progress=stop)
    finished = sorted((tmp_path / "cut" / "parts").glob("*.jsonl"))
    assert len(finished) == 2 and not (tmp_path / "cut" / "COLOR.jsonl").exists()
    finished[0].unlink()
    again: list[int] = []
    collect_to_folder(tmp_path / "cut", asked, modules, shard_size=4, progress=lambda n, _: again.append(n))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole") and again == [2, 3]
    assert len(load_records(tmp_path / "cut")["COLOR"]) == 10


def test_a_folder_belongs_to_its_questions_and_modules(tmp_path: Path) -> None:
    collect_to_folder(tmp_path, small.questions(2), small.modules())
    with pytest.raises(StaleError):
        collect_to_folder(tmp_path, small.questions(3), small.modules())
    with pytest.raises(StaleError):
        collect_to_folder(tmp_path, small.questions(2), small.modules(COLOR=small.color(5)))


def test_labelled_records_teach_a_module_from_folder_to_folder(tmp_path: Path) -> None:
    asked, modules = small.questions(30), small.modules()
    records = collect_to_folder(tmp_path / "records", asked, modules)
    label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(small.brightest)})
    options = SdvpOptions(settings=small.SETTINGS)
    taught = train_to_folder(tmp_path / "taught", tmp_path / "labelled", modules, [tmp_path / "records"], options)
    calls = [call_of(r) for r in records["COLOR"]]
    truth = small.brightest(calls)

    def right(module) -> float:  # noqa: ANN001
        return sum(a == b for a, b in zip(module.run(calls).values, truth, strict=True)) / len(calls)

    assert right(taught["COLOR"]) > right(modules["COLOR"])
    again = train_to_folder(tmp_path / "taught", tmp_path / "labelled", modules, [tmp_path / "records"], options)
    assert again["COLOR"].version == taught["COLOR"].version


def test_labels_of_nobody_teach_nothing(tmp_path: Path) -> None:
    modules = small.modules()
    records = collect_to_folder(tmp_path / "records", small.questions(2), modules)
    label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(lambda calls: [None] * len(calls))})
    with pytest.raises(InputError, match="no record has a label"):
        train_to_folder(tmp_path / "taught", tmp_path / "labelled", modules)
    with pytest.raises(InputError, match="no trainable module 'MIDDLE'"):
        label_to_folder(tmp_path / "x", records, modules, {"MIDDLE": from_callable(small.brightest)})


def test_records_are_json_a_person_can_read(tmp_path: Path) -> None:
    save_records(collect(small.questions(1), small.modules()), tmp_path)
    row = json.loads((tmp_path / "COLOR.jsonl").read_text().splitlines()[0])
    assert row["module"] == "COLOR" and row["id"] == "q0" and row["input"]["crop_box"] and "ms" not in row
    assert Call("COLOR", {})
