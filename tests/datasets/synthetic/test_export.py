from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import PIL.Image
import pytest

from tutelage.datasets import gqa, gqa_metrics, nlvr2
from tutelage.datasets.synthetic import export
from tutelage.datasets.synthetic.functional_executor import answer, execute
from tutelage.errors import InputError, StorageError


@pytest.fixture(scope="module")
def gqa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen: list[tuple[float, float | None]] = []
    root = tmp_path_factory.mktemp("gqa")
    export.make(root, "gqa", seed=5, images=12, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 48) for done in range(1, 49)]
    return root


def test_the_reader_of_gqa_reads_it(gqa_root: Path) -> None:
    folder = gqa.GqaFolder(gqa_root)
    assert (gqa_root / "train_all_questions").is_dir() and len(list((gqa_root / "train_all_questions").iterdir())) == 10
    for split in ("train", "val", "testdev"):
        questions = {q.id: q for q in gqa.read_questions(folder.questions(split, "all"))}
        balanced = list(gqa.read_questions(folder.questions(split, "balanced")))
        assert {q.id for q in balanced} == {q.id for q in questions.values() if q.is_balanced}
        assert folder.missing_images(q.image_id for q in questions.values()) == []
        choices = {name: valid for name, valid, _ in gqa.read_choices(folder.choices(split))}
        assert all(q.answer in choices[q.id] for q in questions.values())
    hidden = list(gqa.read_questions(folder.questions("test", "all"), annotated=False))
    assert hidden and '"answer"' not in (gqa_root / "test_all_questions.json").read_text()
    assert not (gqa_root / "testdev_sceneGraphs.json").exists()


def test_functional_programs_run_on_the_written_graphs(gqa_root: Path) -> None:
    graphs = json.loads((gqa_root / "val_sceneGraphs.json").read_text())
    for question in gqa.read_questions(gqa_root / "val_all_questions.json"):
        graph = graphs[question.image_id]
        assert answer(execute(question.semantic, graph)[-1]) == question.answer
        for pointers in (question.annotations or {}).values():
            assert set(pointers.values()) <= set(graph["objects"])


def test_entailed_and_equivalent_questions_agree(gqa_root: Path) -> None:
    questions = {q.id: q for q in gqa.read_questions(gqa_root / "val_all_questions.json")}
    entailed = 0
    known: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for q in questions.values():
        assert q.id in q.equivalent and q.id not in q.entailed
        for other in (questions[name] for name in q.equivalent):
            assert (other.answer, other.image_id) == (q.answer, q.image_id)
        entailed += len(q.entailed)
        for name in q.entailed:
            known[q.detailed, questions[name].detailed].add(name)
    assert entailed > 100
    assert known["queryColor", "verifyColor"] and known["count", "exist"]
    assert not known["exist", "queryColor"] and not known["verifySize", "verifyColor"]


def test_right_answers_score_full_marks(gqa_root: Path, tmp_path: Path) -> None:
    questions = list(gqa.read_questions(gqa_root / "testdev_all_questions.json"))
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps([{"questionId": q.id, "prediction": q.answer} for q in questions]))
    scores = gqa_metrics.evaluate(
        gqa_root / "testdev_all_questions.json", file, choices=gqa_root / "testdev_choices.json", consistency=True
    )
    for name in ("accuracy", "binary", "open", "consistency", "validity", "plausibility"):
        assert scores[name] == 100, name
    assert scores["distribution"] == 0


def test_the_reader_of_nlvr2_reads_it(tmp_path: Path) -> None:
    export.make(tmp_path, "nlvr2", seed=5, images=6)
    folder = nlvr2.Nlvr2Folder(tmp_path)
    for split in ("train", "dev", "test1", "test2"):
        examples = list(nlvr2.read_examples(folder.examples(split)))
        assert len(examples) == 16 and folder.missing_images(examples) == []
        assert Counter(example.label for example in examples) == {True: 8, False: 8}
        assert {Counter(e.group for e in examples)[group] for group in {e.group for e in examples}} == {4}
        assert (examples[0].directory is not None) == (split == "train")
        with PIL.Image.open(folder.images(examples[0])[1]) as picture:
            assert picture.size == (48, 48) and picture.format == "PNG"
    parts = [list(nlvr2.read_examples(folder.examples("dev", part))) for part in ("balanced", "unbalanced")]
    assert sorted(e.identifier for part in parts for e in part) == sorted(
        e.identifier for e in nlvr2.read_examples(folder.examples("dev"))
    )


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for layout in ("gqa", "nlvr2"):
        found = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            root = export.make(tmp_path / f"{layout}{name}", layout, seed=seed, images=2)
            found.append({str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()})
        assert found[0] == found[1] and found[0].keys() == found[2].keys() and found[0] != found[2]


def test_bad_requests_and_bad_folders_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown layout 'gqaa'"):
        export.make(tmp_path / "x", "gqaa", seed=0, images=1)
    with pytest.raises(InputError, match="images"):
        export.make(tmp_path / "x", "gqa", seed=0, images=0)
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        export.make(tmp_path / "file", "gqa", seed=0, images=1)


def test_a_failure_half_way_leaves_no_half_written_file(tmp_path: Path) -> None:
    def stop(done: float, total: float | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.make(tmp_path, "gqa", seed=0, images=5, progress=stop)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jpg"] == []
