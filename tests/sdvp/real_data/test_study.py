"""`tutelage sdvp study --task`: on miniatures of the official folders, with networks that know nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.datasets.sampling import SampledIds, Subset
from tutelage.datasets.synthetic.export import write_gqa, write_nlvr2
from tutelage.errors import InputError
from tutelage.programs.generators.base import Candidate, GenerationRequest
from tutelage.programs.image_cache import ImageCache
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.sdvp.real_data import evaluation as evaluation_module
from tutelage.sdvp.real_data.datasets import Gqa, Nlvr2
from tutelage.sdvp.real_data.evaluation import Evaluator, GeneratedPrograms, generate_programs
from tutelage.sdvp.real_data.protocols import VIPER_GQA, VISPROG_GQA, VISPROG_GQA_VAL, VISPROG_NLVR2
from tutelage.sdvp.real_data.splits import LEARN, PROBE, REPORT, draw_sample, drop_missing_images, read_items

from ...programs.generators.stub_server import PROGRAM, said, serving
from .. import small

runner = CliRunner()
SMALL = ("--set", "study.per_kind=2", "--set", "study.probe=1")
SPECIALISTS = ("--teacher", "VQA=color", "--teacher", "LOC=loc", "--teacher", "VERIFY=color")


def study(*words: object, code: int = 0) -> str:
    done = runner.invoke(app, ["sdvp", "study", "--smoke", *map(str, words)])
    assert done.exit_code == code, f"{done.output}\n{done.exception}"
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("official")
    write_gqa(root / "gqa", seed=1, images=6)
    write_nlvr2(root / "nlvr2", seed=1, pairs=4)
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the GQA miniature to break."""
    return Path(shutil.copytree(folder / "gqa", tmp_path / "gqa"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Path, str]:
    out = folder / "run"
    return out, study("--task", "gqa", "--root", folder / "gqa", *SMALL, "--out", out, "--json", folder / "run.json")


def bits(run: Path) -> dict[str, Any]:
    """The result without what differs between equal runs."""
    result = json.loads((run / "study.json").read_text())
    result.pop("seconds")
    for seed in result["per_seed"]:
        seed.pop("opened")
        for lesson in seed["lessons"]:
            lesson.pop("seconds")
    return result


def test_frozen_and_taught_modules_on_held_out_questions(folder: Path, whole: tuple[Path, str]) -> None:
    run, said = whole
    result = json.loads((folder / "run.json").read_text())
    report = json.loads((run / "ids.json").read_text())["parts"][REPORT]
    arms = result["per_seed"][0]["arms"]
    assert set(arms) == {"one call", "frozen", "sdvp"}, "testdev has no scene graphs: the teachers have nothing to say"
    assert report["split"] == "testdev" and len(report["ids"]) == len(arms["sdvp"]["right"])
    for arm in arms.values():
        assert arm["official"]["accuracy"] == pytest.approx(arm["accuracy"]), "exact texts are GQA's own metric"
        assert sum(arm["status"].values()) == len(report["ids"])
    assert {lesson["module"] for lesson in result["per_seed"][0]["lessons"]} == {"LOC", "VQA", "VERIFY"}
    assert sum(lesson["kept"] for lesson in result["per_seed"][0]["lessons"]) > 0
    assert result["table"][0]["questions"] == len(report["ids"]) and result["resize"] == "none"
    assert "smoke test" in said and "unverified" in said and result["sample"]["hash"] in said
    assert result["seeds"] == [0] and result["missing"] == {"images": [], "records": {LEARN: 0, PROBE: 0, REPORT: 0}}


def test_a_finished_run_is_read_back_and_other_settings_are_refused(folder: Path, whole: tuple[Path, str]) -> None:
    before = bits(whole[0])
    again = ["--task", "gqa", "--root", folder / "gqa", "--out", whole[0]]
    study(*again, *SMALL)
    assert bits(whole[0]) == before
    assert "other settings" in study(*again, "--set", "study.per_kind=3", code=3)
    assert "other settings" in study(*again, *SMALL, "--resize", "longest=30", code=3)
    assert "other writer" in study(*again, *SMALL, "--set", "prompt.shots=3", code=3)
    assert "other modules or teachers" in study(*again, *SMALL, "--teacher", "VQA=color", code=3)


def test_the_same_questions_again_by_their_ids(folder: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    ids = whole[0] / "ids.json"
    # another seed would draw others; the file decides
    given = ["--task", "gqa", "--root", folder / "gqa", *SMALL, "--ids", ids, "--first-seed", 5, "--resize", "longest=30"]
    study(*given, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "ids.json").read_bytes() == ids.read_bytes()
    result = json.loads((tmp_path / "again" / "study.json").read_text())
    assert result["sample"]["hash"] == json.loads(ids.read_text())["hash"] and result["resize"] == "longest=30"


def test_calls_of_earlier_tasks_are_replayed(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "gqa" / "images" / "1000000.jpg", tmp_path / "a.jpg")
    line = {"id": "1", "dsl": "visprog", "program": ask("What color is the star?"), "images": {"IMAGE": "a.jpg"}}
    (tmp_path / "earlier.jsonl").write_text(json.dumps(line) + "\n")
    where = ["--task", "gqa", "--root", folder / "gqa", *SMALL, "--teacher", "VQA=gold"]
    replayed = []
    for name, more in (("a", []), ("b", ["--set", f"study.replay={tmp_path / 'earlier.jsonl'}"])):
        study(*where, *more, "--out", tmp_path / name)
        replayed.append(json.loads((tmp_path / name / "study.json").read_text())["per_seed"][0]["lessons"][0]["replayed"])
    assert replayed[1] > replayed[0]


def test_where_scene_graphs_reach_the_reported_questions_the_teachers_are_an_arm(folder: Path, tmp_path: Path) -> None:
    preset = ["--task", "gqa", "--preset", "visprog-gqa-val", "--root", folder / "gqa", *SMALL]
    study(*preset, "--dsl", "viper", "--out", tmp_path)
    arms = json.loads((tmp_path / "study.json").read_text())["per_seed"][0]["arms"]
    assert arms["frozen"]["covered_calls"] > 0.5
    assert arms["teachers"]["accuracy"] > arms["frozen"]["accuracy"] + 20


def test_programs_by_rules_for_questions_of_which_some_are_not_understood(folder: Path, tmp_path: Path) -> None:
    study("--task", "gqa", "--root", folder / "gqa", *SMALL, "--generator", "grammar", "--out", tmp_path)
    result = json.loads((tmp_path / "study.json").read_text())
    assert result["writer"] == "grammar" and result["unwritten"].keys() == {LEARN, PROBE, REPORT}
    assert sum(result["unwritten"][REPORT].values()) == result["per_seed"][0]["arms"]["frozen"]["status"].get("writer", 0)


def test_a_language_model_writes_as_many_programs_as_the_protocol_votes_over(folder: Path, tmp_path: Path) -> None:
    with serving(lambda asked, number: said(PROGRAM)) as server:
        settings = {"url": server.url, "model": "stub", "backoff": 0.0}
        named = [word for name, value in settings.items() for word in ("--set", f"endpoint.{name}={value}")]
        study(
            *("--task", "gqa", "--root", folder / "gqa", "--set", "study.per_kind=1", "--set", "study.probe=0"),
            *("--generator", "endpoint", *named, "--set", f"prompt.cache={tmp_path / 'kept'}", "--out", tmp_path / "run"),
            *("--json", tmp_path / "run.json"),
        )
        asked = len(server.asked)
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["runs"] == 5 and result["sample"]["records"][PROBE] == 0
    assert result["writing"]["usage"]["answers"] == asked > 5 * result["sample"]["records"][REPORT]
    assert result["per_seed"][0]["arms"]["frozen"]["calls_per_question"] == 10, "five programs of two steps"


def test_pairs(folder: Path, tmp_path: Path) -> None:
    where = ["--task", "nlvr2", "--root", folder / "nlvr2"]
    assert "no scene graphs" in study(*where, "--out", tmp_path / "a", code=2)
    assert "only GQA has functional programs" in study(*where, "--generator", "semantic", "--out", tmp_path / "b", code=2)
    study(*where, *SPECIALISTS, "--out", tmp_path / "c")
    result = json.loads((tmp_path / "c" / "study.json").read_text())
    arms = result["per_seed"][0]["arms"]
    assert set(arms) == {"frozen", "teachers", "sdvp"} and result["writer"] == "grammar"
    assert arms["frozen"]["official"]["accuracy"] == arms["frozen"]["accuracy"]
    assert arms["frozen"]["official"]["consistency"] <= arms["frozen"]["accuracy"]


def test_missing_pictures_are_listed_and_left_out_only_when_asked(own: Path, tmp_path: Path) -> None:
    for path in sorted((own / "images").glob("3*.jpg"))[:2]:  # testdev's
        path.unlink()
    where = ["--task", "gqa", "--root", own, *SMALL, "--out"]
    said = study(*where, tmp_path / "a", code=2)
    assert "2 images are missing, such as 3000000, 3000001" in said and "--skip-missing" in said
    assert json.loads((tmp_path / "a" / "missing.json").read_text()) == ["3000000", "3000001"]
    said = study(*where, tmp_path / "b", "--skip-missing")
    result = json.loads((tmp_path / "b" / "study.json").read_text())
    assert result["missing"]["images"] == ["3000000", "3000001"] and result["missing"]["records"][REPORT] > 0
    assert len(result["per_seed"][0]["arms"]["sdvp"]["right"]) == result["sample"]["records"][REPORT]
    drawn = len(json.loads((tmp_path / "b" / "ids.json").read_text())["parts"][REPORT]["ids"])
    assert result["sample"]["records"][REPORT] == drawn - result["missing"]["records"][REPORT]
    assert "2 images missing" in said


def test_a_picture_that_cannot_be_read_is_named(own: Path, tmp_path: Path) -> None:
    for path in (own / "images").glob("1*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    assert "cannot read this as an image" in study("--task", "gqa", "--root", own, *SMALL, "--out", tmp_path / "a", code=2)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda text: text[: len(text) // 2], "train_balanced_questions.json: not whole JSON, near byte"),
        (lambda text: text[:-3] + "," + text[text.index("{") + 1 :], "appears twice"),
        (lambda text: text.replace('"imageId"', '"image"'), "field 'imageId' is missing"),
        (lambda text: text.replace('"answer": "', '"answer": 7, "was": "', 1), "field 'answer' is 7"),
    ],
)
def test_a_broken_file_is_named_with_record_and_field(own: Path, tmp_path: Path, breaks: Any, message: str) -> None:
    file = own / "train_balanced_questions.json"
    file.write_text(breaks(file.read_text()))
    said = study("--task", "gqa", "--root", own, *SMALL, "--out", tmp_path / "a", code=2)
    assert message in said and "remedy" in said


def test_options_that_do_not_fit_together_are_told(folder: Path, tmp_path: Path) -> None:
    assert "needs its folder" in study("--task", "gqa", code=2)
    assert "add --task" in study("--preset", "viper-gqa", code=2)
    where = ["--task", "gqa", "--root", folder / "gqa", "--out", tmp_path / "x"]
    assert "did you mean viper-gqa" in study(*where, "--preset", "viper-gqua", code=2)
    assert "longest=640" in study(*where, "--resize", "half", code=2)
    assert "no such file" in study(*where, "--ids", tmp_path / "none.json", code=2)
    assert "no trainable module 'CROP'" in study(*where, *SMALL, "--teacher", "CROP=gold", code=2)
    assert "not MODULE=TEACHER" in study(*where, *SMALL, "--teacher", "gold", code=2)
    assert "unknown key" in study(*where, "--set", "study.step=3", code=2)


def test_samples_share_no_image_and_a_file_that_does_is_refused(folder: Path) -> None:
    data = Gqa(folder / "gqa")
    for preset in (VISPROG_GQA, VISPROG_GQA_VAL):
        sample = draw_sample(data, preset, 2, 1, 7)
        items = read_items(data, sample)
        images = [{item.image_id for item in part} for part in items.values()]
        assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
        assert sample.parts[PROBE].split == ("train" if preset is VISPROG_GQA_VAL else "val")
        assert draw_sample(data, preset, 2, 1, 7).hash == sample.hash != draw_sample(data, preset, 2, 1, 8).hash
    learn = sample.parts[LEARN]
    shared = SampledIds({}, {LEARN: learn, REPORT: Subset(learn.split, learn.subset, learn.ids[:1])})
    with pytest.raises(InputError, match="is in the parts learn and report"):
        read_items(data, shared)
    with pytest.raises(InputError, match="no ids to report"):
        read_items(data, SampledIds({}, {LEARN: learn}))
    pairs = draw_sample(Nlvr2(folder / "nlvr2"), VISPROG_NLVR2, 3, 1, 0)
    assert [len(part.ids) for part in pairs.parts.values()] == [3, 1, 8]


class Colors:
    """A stand-in VQA that answers by the question."""

    name, version, symbolic, batch_size = "VQA", "1", False, 8
    signature = Signature({"image": "image", "question": "text"}, "text")

    def run(self, calls: list[Call]) -> ModuleOutputs:
        return ModuleOutputs([str(call.args["question"]).split()[-1] for call in calls])


def gqa_items(folder: Path, count: int) -> tuple[Any, dict[str, dict[str, Path]]]:
    data = Gqa(folder / "gqa")
    items = list(data.items("testdev", "balanced"))[:count]
    found, paths, _ = drop_missing_images(data, {LEARN: items, REPORT: items}, False, lambda names: Path("none"))
    return found[REPORT], paths


def ask(word: str) -> str:
    return f"A=VQA(image=IMAGE,question='{word}')\nFINAL_RESULT=RESULT(var=A)"


def test_the_majority_of_several_programs_answers(folder: Path, tmp_path: Path) -> None:
    items, paths = gqa_items(folder, 2)
    texts = {
        items[0].id: GeneratedPrograms((ask("red"), ask("blue"), "nonsense", ask("blue")), (None,) * 4, {}),
        items[1].id: GeneratedPrograms((), (), {"writer": 4}),
    }
    modules = {**small.symbolic_modules(), "VQA": Colors()}
    pictures = ImageCache()
    assert pictures.opened == 0
    rows = Evaluator(items, paths, pictures, "visprog", VISPROG_GQA).answers(tmp_path / "a", modules, texts)
    assert [(row["answer"], row["status"], row["calls"]) for row in rows] == [("blue", "ok", 6), ("", "writer", 0)]
    assert not rows[1]["right"] and pictures.opened == len({item.image_id for item in items})
    rows = Evaluator(items, paths, pictures, "visprog", VIPER_GQA).answers(tmp_path / "b", modules, texts)
    assert rows[1]["fallback"] and rows[1]["answer"] == items[1].text.split()[-1], "under ViperGPT's protocol VQA stands in"


def test_programs_are_written_once_part_by_part(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, _ = gqa_items(folder, 5)
    monkeypatch.setattr(evaluation_module, "SHARD_SIZE", 2)
    asked: list[str] = []

    class Counting:
        name = "counting"

        def generate(self, requests: list[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
            asked.extend(request.id for request in requests)
            return [[Candidate(f"{request.id}/{number}", "counting", 0.5) for number in range(n)] for request in requests]

    first = generate_programs(tmp_path, items[:3], Counting(), "visprog", ("IMAGE",), 2)
    (tmp_path / "00001.jsonl").unlink()
    assert generate_programs(tmp_path, items[:3], Counting(), "visprog", ("IMAGE",), 2) == first
    assert asked == [item.id for item in items[:3]] + [items[2].id]
    assert first[items[0].id] == GeneratedPrograms((f"{items[0].id}/0", f"{items[0].id}/1"), (0.5, 0.5), {})


def running(root: Path, out: Path) -> None:
    evaluation_module.SHARD_SIZE = 8
    study("--task", "gqa", "--root", root, "--set", "study.per_kind=1", "--set", "study.probe=1", "--out", out)


@pytest.mark.slow
def test_a_study_killed_goes_on_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    def start(name: str) -> Any:
        child = multiprocessing.get_context("spawn").Process(target=running, args=(folder / "gqa", tmp_path / name))
        child.start()
        return child

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    for mark in ("programs/report/00001.jsonl", "seed-0/gqa/LOC/taught.json", "seed-0/answers/sdvp/00000.jsonl"):
        child = start("cut")
        while child.is_alive() and not (tmp_path / "cut" / mark).exists():
            time.sleep(0.001)
        assert child.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not (tmp_path / "cut" / "study.json").exists()
    last = start("cut")
    last.join()
    assert last.exitcode == 0 and bits(tmp_path / "cut") == bits(tmp_path / "whole")
