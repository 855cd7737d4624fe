"""`tutelage sdvp collect|label|train|evaluate`, from a folder of questions to taught modules, with networks that know nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage import storage
from tutelage.cli.main import app
from tutelage.datasets.synthetic.export import write_gqa, write_nlvr2
from tutelage.modules.loading import load

from . import small

runner = CliRunner()


def sdvp(*words: object, code: int = 0) -> Any:
    done = runner.invoke(app, ["sdvp", *map(str, words)])
    assert done.exit_code == code, f"{done.output}\n{done.exception}"
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sdvp")
    write_gqa(root / "gqa", seed=1, images=6)
    write_nlvr2(root / "nlvr2", seed=1, pairs=4)
    return root


def test_from_questions_to_taught_modules(folder: Path) -> None:
    sdvp("collect", folder / "gqa", folder / "records", "--split", "val", "--quick", "--json", folder / "collect.json")
    counts = json.loads((folder / "collect.json").read_text())["records"]
    assert set(counts) == {"LOC", "VQA", "VERIFY"} and all(counts.values())
    for module, count in counts.items():
        assert len((folder / "records" / f"{module}.jsonl").read_text().splitlines()) == count + 1  # and the digest
    before = (folder / "records" / "LOC.jsonl").read_bytes()
    sdvp("collect", folder / "gqa", folder / "records", "--split", "val", "--quick")
    assert (folder / "records" / "LOC.jsonl").read_bytes() == before

    teachers = ["--teacher=VQA=color", "--teacher=VERIFY=color", "--teacher=LOC=loc", "--min-confidence=0"]
    sdvp("label", folder / "records", folder / "labelled", *teachers, "--quick", "--json", folder / "label.json")
    said = json.loads((folder / "label.json").read_text())["modules"]
    assert set(said) == {"LOC", "VQA", "VERIFY"} and all(row["kept"] == row["labelled"] > 0 for row in said.values())

    train = ["train", folder / "labelled", folder / "taught", "--replay", folder / "records", "--steps", 3, "--quick"]
    sdvp(*train, "--json", folder / "train.json")
    versions = json.loads((folder / "train.json").read_text())["modules"]
    for name, row in versions.items():
        assert load(folder / "taught" / name).version == row["version"] != row["from"]
    sdvp("evaluate", folder / "gqa", "--modules", folder / "taught", "--quick", "--json", folder / "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["questions"] == sum(row["questions"] for row in scores["types"].values()) > 0
    assert 0 <= scores["accuracy"] <= 100 and scores["executed"] > 0


def test_pairs_and_programs_are_sources_too(folder: Path, tmp_path: Path) -> None:
    out = sdvp("evaluate", folder / "nlvr2", "--layout", "nlvr2", "--split", "dev", "--quick", "--json", tmp_path / "n.json")
    assert "nlvr2" in out and json.loads((tmp_path / "n.json").read_text())["questions"] > 0
    line = {
        "id": "1",
        "dsl": "visprog",
        "program": "ANSWER0=VQA(image=IMAGE,question='What color is the shape?')\nFINAL_RESULT=RESULT(var=ANSWER0)",
        "images": {"IMAGE": "a.png"},
        "answer": "red",
    }
    small.picture(0, "red").to_pil().save(tmp_path / "a.png")
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    sdvp("collect", tmp_path / "own.jsonl", tmp_path / "records", "--layout", "programs", "--quick")
    assert len((tmp_path / "records" / "VQA.jsonl").read_text().splitlines()) == 2  # the record, and the digest


def test_bad_input_is_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in sdvp("evaluate", tmp_path / "no", "--quick", code=2)
    assert "no step records here" in sdvp("label", tmp_path, tmp_path / "x", "--teacher", "VQA=color", "--quick", code=2)
    broken = {"id": "1", "dsl": "visprog", "program": "A=RESULT(var=IMAGE)", "images": {"IMAGE": "none.png"}}
    (tmp_path / "p.jsonl").write_text(json.dumps(broken) + "\n")
    said = sdvp("collect", tmp_path / "p.jsonl", tmp_path / "r", "--layout", "programs", "--quick", code=2)
    assert "p.jsonl:1" in said and "none.png" in said and not (tmp_path / "r").exists()
    (tmp_path / "cut.jsonl").write_text(json.dumps(broken)[:40])
    assert "cut.jsonl:1" in sdvp("collect", tmp_path / "cut.jsonl", tmp_path / "r", "--layout", "programs", "--quick", code=2)


def test_a_folder_of_other_work_or_of_another_version_is_refused(folder: Path, tmp_path: Path) -> None:
    where = [folder / "gqa", tmp_path / "r", "--split", "val", "--quick"]
    sdvp("collect", *where, "--limit", 3)
    assert "other settings" in sdvp("collect", *where, "--limit", 4, code=3)
    head = storage.read_json(tmp_path / "r" / "run.json")
    storage.write_json(tmp_path / "r" / "run.json", head | {"version": 99})
    assert "a run of format 99" in sdvp("collect", *where, "--limit", 3, code=3)


def test_an_unwritable_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = sdvp("collect", folder / "gqa", tmp_path / "file" / "out", "--split", "val", "--limit", 2, "--quick", code=4)
    assert "cannot write" in said and "remedy" in said


def test_a_teacher_is_named_as_module_and_teacher(folder: Path, tmp_path: Path) -> None:
    records = folder / "r2"
    sdvp("collect", folder / "gqa", records, "--split", "val", "--limit", 3, "--quick")
    assert "not MODULE=TEACHER" in sdvp("label", records, tmp_path / "l", "--teacher", "VQA", "--quick", code=2)
    assert "is a VQA, not a LOC" in sdvp("label", records, tmp_path / "l", "--teacher", "LOC=color", "--quick", code=2)


def test_a_probe_calibrates_teachers_and_refuses_bad_ones(folder: Path, tmp_path: Path) -> None:
    records = folder / "r3"
    sdvp("collect", folder / "gqa", records, "--split", "val", "--limit", 12, "--quick")
    label = ["label", records, "--teacher", "VQA=color", "--teacher", "LOC=loc", "--min-confidence", 0, "--quick"]
    out = sdvp(*label[:2], tmp_path / "unseen", *label[2:])
    assert "teacher not checked" in out
    probe = ["--probe", folder / "gqa", "--split", "train", "--json", tmp_path / "l.json"]
    out = sdvp(*label[:2], tmp_path / "probed", *label[2:], *probe)
    said = json.loads((tmp_path / "l.json").read_text())["modules"]
    assert said["VQA"]["calls"] > 0 and said["LOC"]["calls"] == 0, "final answers are no boxes"
    assert said["VQA"]["accepted"] == (said["VQA"]["teacher"] > said["VQA"]["student"])
    assert said["VQA"]["accepted"] or said["VQA"]["labelled"] == 0
    assert ("refused" if not said["VQA"]["accepted"] else "accepted:") in out


def test_blame_ranks_modules_by_question_type(folder: Path, tmp_path: Path) -> None:
    storage.write_json(tmp_path / "run.json", {"settings": {"plan": {"seeds": [0], "quick": True}}})
    out = sdvp("attribute", tmp_path, "--count", 12, "--task", "b_gqa", "--json", tmp_path / "b.json")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["questions"] == 12 and found["ceiling"] == 100 and found["arm"] == "frozen" and found["seeds"] == [0]
    shares = [row["error_share"] for row in found["rows"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-9
    assert found["rows"][0]["module"] in out and "errors of program logic" in out
    assert "no such file" in sdvp("attribute", tmp_path / "none", code=2)
    assert "no seed 7" in sdvp("attribute", tmp_path, "--seed", 7, code=2)
    assert "no arm 'sdvp'" in sdvp("attribute", tmp_path, "--arm", "sdvp", code=2)


def test_an_unknown_axis_of_the_ablations_is_named(tmp_path: Path) -> None:
    said = sdvp("study", "--ablations", "--smoke", "--axis", "ordre", "--out", tmp_path / "a", code=2)
    assert "no axis 'ordre'" in said and "order" in said and not (tmp_path / "a").exists()
