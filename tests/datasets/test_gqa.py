"""GQA readers: the published layout read field by field, every fault named, samples seeded and independent of order."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.gqa import GqaFolder, GqaStep, read_choices, read_questions, read_scene_graphs
from tutelage.datasets.json_records import size_of
from tutelage.errors import InputError

RAW = {
    "imageId": "n161313",
    "question": "What color is the bowl to the left of the fork?",
    "answer": "red",
    "fullAnswer": "The bowl is red.",
    "isBalanced": True,
    "groups": {"global": "color", "local": "10c-bowl_color"},
    "entailed": ["02930152"],
    "equivalent": ["02930152", "02930153"],
    "types": {"structural": "query", "semantic": "attr", "detailed": "attrC"},
    "annotations": {"question": {"4": "7", "9:11": "8"}, "answer": {}, "fullAnswer": {"1": "7"}},
    "semantic": [
        {"operation": "select", "argument": "fork (8)", "dependencies": []},
        {"operation": "relate", "argument": "bowl,to the left of,s (7)", "dependencies": [0]},
        {"operation": "query", "argument": "color", "dependencies": [1]},
    ],
    "semanticStr": "select: fork (8)->relate: bowl,to the left of,s (7) [0]->query: color [1]",
}
GRAPH = {
    "width": 640,
    "height": 480.0,
    "location": "kitchen",
    "objects": {
        "7": {"name": "bowl", "x": 1, "y": 2, "w": 30, "h": 40, "attributes": ["red"], "relations": []},
        "8": {
            "name": "fork",
            "x": 50,
            "y": 2,
            "w": 5,
            "h": 40,
            "attributes": [],
            "relations": [{"name": "to the right of", "object": "7"}],
        },
    },
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def changed(path, value):
    """RAW with one field, named by its path, set to ``value`` or (for ``...``) taken out."""
    record = copy.deepcopy(RAW)
    *parents, last = path
    place = record
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


def test_a_question_is_read_whole(tmp_path):
    (question,) = read_questions(write(tmp_path / "q.json", {"02930151": RAW}))
    assert (question.id, question.image_id, question.answer, question.is_balanced) == (
        "02930151",
        "n161313",
        "red",
        True,
    )
    assert (question.structural, question.semantic_type, question.detailed) == ("query", "attr", "attrC")
    assert (question.global_group, question.local_group) == ("color", "10c-bowl_color")
    assert question.semantic[1] == GqaStep("relate", "bowl,to the left of,s (7)", (0,))
    assert question.annotations == RAW["annotations"] and question.semantic_text == RAW["semanticStr"]
    assert question.entailed == ("02930152",) and question.equivalent == ("02930152", "02930153")


def test_hidden_answers_are_read_only_where_asked(tmp_path):
    file = write(tmp_path / "q.json", {"1": {key: RAW[key] for key in ("imageId", "question", "isBalanced")}})
    (question,) = read_questions(file, annotated=False)
    assert question.answer is None and question.semantic == ()
    with pytest.raises(InputError, match="hidden test split, without an answer") as refused:
        list(read_questions(file))
    assert "--submission" in refused.value.remedy


def test_a_file_may_leave_annotations_out(tmp_path):
    raw = {key: value for key, value in RAW.items() if key != "annotations"}
    (question,) = read_questions(write(tmp_path / "q.json", {"1": raw}))
    assert question.annotations is None and question.answer == RAW["answer"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("answer",), ..., "'answer' is missing"),
        (("answer",), True, "'answer' is True"),
        (("imageId",), "../../etc/passwd", "'imageId'"),
        (("imageId",), "", "'imageId'"),
        (("isBalanced",), "yes", "'isBalanced'"),
        (("types", "structural"), "guess", "one of verify"),
        (("types", "semantic"), ..., "'semantic' is missing"),
        (("groups",), None, "'groups'"),
        (("groups", "global"), 3, "groups.*'global'"),
        (("entailed",), {"a": 1}, "'entailed'"),
        (("entailed",), [1], "'entailed'"),
        (("annotations", "question"), [], "'question'"),
        (("annotations", "question", "4"), "a/b", "annotations, question.*'4'"),
        (("semantic", 2, "dependencies"), [3], "semantic 2.*dependencies"),
        (("semantic", 2, "dependencies"), [True], "semantic 2.*dependencies"),
        (("semantic", 0, "operation"), ..., "semantic 0.*'operation' is missing"),
        (("semantic",), [5], "semantic 0.*not a JSON object"),
    ],
)
def test_a_bad_field_is_named_with_file_and_question(tmp_path, path, value, message):
    file = write(tmp_path / "q.json", {"1": RAW, "22": changed(path, value)})
    reader = read_questions(file)
    assert next(reader).id == "1"
    with pytest.raises(InputError, match=rf"q\.json: question 22(.|\n)*{message}(.|\n)*remedy"):
        next(reader)


@pytest.mark.parametrize("key", ["", "a/b", "..", "1 2"])
def test_a_bad_question_id_is_named(tmp_path, key):
    with pytest.raises(InputError, match="bad id"):
        list(read_questions(write(tmp_path / "q.json", {key: RAW})))


@pytest.mark.parametrize("text", ["", "   ", "[]", "null", '"x"'])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"q\.json: not a JSON object"):
        list(read_questions(write(tmp_path / "q.json", text)))


@given(st.data())
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path_factory, data):
    text = json.dumps({"1": RAW, "2": RAW})
    file = tmp_path_factory.mktemp("cut") / "q.json"
    write(file, text[: data.draw(st.integers(1, len(text) - 1))])
    with pytest.raises(InputError, match="not whole JSON"):
        list(read_questions(file))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "q.json"
    file.write_bytes(json.dumps({"1": RAW}).encode().replace(b"red", b"r\xffd"))
    with pytest.raises(InputError, match=r"q\.json"):
        list(read_questions(file))


def test_absent_paths(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="no such file, and no folder"):
            list(read_questions(path))


def test_chunks_are_read_in_the_order_of_their_numbers_with_progress(tmp_path):
    folder = tmp_path / "train_all_questions"
    for number in (0, 2, 10):
        write(folder / f"train_all_questions_{number}.json", {f"{number}0": RAW, f"{number}1": RAW})
    read = []
    ids = [question.id for question in read_questions(folder, progress=read.append)]
    assert ids == ["00", "01", "20", "21", "100", "101"]
    assert sum(read) == size_of(folder) == sum(file.stat().st_size for file in folder.iterdir())


def test_only_what_is_read_is_held(tmp_path):
    broken_later = json.dumps({str(number): RAW for number in range(500)})[:-1] + ', "x": oops'
    reader = read_questions(write(tmp_path / "q.json", broken_later))
    assert [next(reader).id for _ in range(100)] == [str(number) for number in range(100)]


def test_scene_graphs(tmp_path):
    (graph,) = read_scene_graphs(write(tmp_path / "g.json", {"n161313": GRAPH}))
    assert (graph.width, graph.height, graph.location, graph.weather) == (640, 480, "kitchen", None)
    assert graph.objects["8"].relations == (("to the right of", "7"),) and graph.objects["7"].attributes == ("red",)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "'width' is 0"),
        ("height", "9", "'height'"),
        ("objects", [], "'objects'"),
        ("location", 1, "'location'"),
    ],
)
def test_bad_scene_graphs_are_named(tmp_path, field, value, message):
    with pytest.raises(InputError, match=rf"image n1(.|\n)*{message}"):
        list(read_scene_graphs(write(tmp_path / "g.json", {"n1": GRAPH | {field: value}})))


def test_a_bad_object_is_named(tmp_path):
    graph = copy.deepcopy(GRAPH)
    graph["objects"]["8"]["x"] = None
    with pytest.raises(InputError, match="image n1, objects, 8: field 'x' is None"):
        list(read_scene_graphs(write(tmp_path / "g.json", {"n1": graph})))


def test_choices(tmp_path):
    file = write(tmp_path / "c.json", {"5": {"valid": ["red", "blue"], "plausible": ["red"]}})
    assert list(read_choices(file)) == [("5", ("red", "blue"), ("red",))]
    with pytest.raises(InputError, match="question 5: field 'plausible' is missing"):
        list(read_choices(write(tmp_path / "c.json", {"5": {"valid": []}})))


def test_the_official_folder(tmp_path):
    write(tmp_path / "questions1.2" / "testdev_balanced_questions.json", {"1": RAW})
    write(tmp_path / "questions1.2" / "train_all_questions" / "train_all_questions_0.json", {"1": RAW})
    write(tmp_path / "sceneGraphs" / "val_sceneGraphs.json", {"n1": GRAPH})
    write(tmp_path / "val_choices.json", {})
    write(tmp_path / "images" / "n1.jpg", "")
    folder = GqaFolder(tmp_path)
    assert folder.questions("testdev").name == "testdev_balanced_questions.json"
    assert folder.questions("train", "all").is_dir()
    assert folder.scene_graphs("val").is_file() and folder.choices("val").is_file()
    assert folder.image("n1").is_file() and folder.missing_images(["n2", "n1", "n0", "n2"]) == ["n0", "n2"]
    with pytest.raises(InputError, match="no testdev_sceneGraphs.json"):
        folder.scene_graphs("testdev")
    with pytest.raises(InputError, match="bad image id"):
        folder.image("../x")
    with pytest.raises(InputError, match="no such folder"):
        GqaFolder(tmp_path / "absent")
