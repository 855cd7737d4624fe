"""NLVR2: lines read and faults named, images found, accuracy and consistency worked out by hand."""

from __future__ import annotations

import json

import pytest

from tutelage.datasets.nlvr2 import Nlvr2Folder, group_of, read_examples, read_predictions, score
from tutelage.errors import InputError

RAW = {
    "identifier": "dev-850-0-0",
    "sentence": "Both images contain a star.",
    "label": "True",
    "left_url": "http://left",
    "right_url": "http://right",
    "synset": "star",
    "query": "star7",
    "writer": "19",
    "validation": {"77": "True"},
    "extra_validations": {"56": "True"},
}


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def examples(path, labels):
    return list(read_examples(lines(path, *(RAW | {"identifier": name, "label": label} for name, label in labels.items()))))


def test_an_example_is_read_whole(tmp_path):
    (example,) = read_examples(lines(tmp_path / "dev.json", RAW))
    assert (example.label, example.split, example.pair) == (True, "dev", "dev-850-0")
    assert example.image_names == ("dev-850-0-img0.png", "dev-850-0-img1.png")
    assert example.group == group_of("dev-850-3-0") == ("dev", "850", "0")
    (hidden,) = read_examples(lines(tmp_path / "hidden.json", {k: v for k, v in RAW.items() if k != "label"}), labelled=False)
    assert hidden.label is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identifier": "dev-850-0"}, "'identifier' is 'dev-850-0'"),
        ({"identifier": "../dev-1-0-0"}, "'identifier'"),
        ({"label": True}, "'label' is True"),
        ({"label": "maybe"}, "one of True, False"),
        ({"sentence": None}, "'sentence'"),
        ({"left_url": 3}, "'left_url'"),
        ({"directory": "../x"}, "'directory'"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"dev\.json:2(.|\n)*{message}"):
        list(read_examples(lines(tmp_path / "dev.json", RAW, RAW | change)))


def test_a_line_cut_in_half_is_named(tmp_path):
    file = lines(tmp_path / "dev.json", RAW, RAW)
    file.write_text(file.read_text()[:-60])
    with pytest.raises(InputError, match=r"dev\.json:2.*not JSON(.|\n)*remedy"):
        list(read_examples(file))
    file.write_bytes(json.dumps(RAW).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_examples(file))


def test_images_of_train_lie_in_their_directory(tmp_path):
    train = RAW | {"identifier": "train-10-1-0", "directory": 58}
    dev, trained, lost = read_examples(lines(tmp_path / "x.json", RAW, train, RAW | {"identifier": "dev-9-0-1"}))
    for name in ("images/train/58/train-10-1", "dev/dev-850-0"):
        for side in ("img0", "img1"):
            file = tmp_path / f"{name}-{side}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    folder = Nlvr2Folder(tmp_path)
    assert folder.images(trained)[1] == tmp_path / "images/train/58/train-10-1-img1.png"
    assert folder.images(dev)[0] == tmp_path / "dev/dev-850-0-img0.png"
    assert folder.missing_images([dev, lost, trained]) == ["dev-9-0"]
    with pytest.raises(InputError, match="dev-9-0-img0"):
        folder.images(lost)
    (undirected,) = read_examples(lines(tmp_path / "y.json", RAW | {"identifier": "train-10-1-0"}))
    with pytest.raises(InputError, match="directory"):
        folder.images(undirected)


def test_files_of_the_folder(tmp_path):
    lines(tmp_path / "data" / "dev.json", RAW)
    lines(tmp_path / "data" / "balanced" / "balanced_dev.json", RAW)
    lines(tmp_path / "unbalanced" / "dev.json", RAW)
    folder = Nlvr2Folder(tmp_path)
    assert [folder.examples("dev", subset).is_file() for subset in ("full", "balanced", "unbalanced")] == [True] * 3
    with pytest.raises(InputError, match=r"no test1\.json"):
        folder.examples("test1")
    with pytest.raises(InputError, match="no such folder"):
        Nlvr2Folder(tmp_path / "absent")


LABELS = {
    "dev-1-0-0": "True",
    "dev-1-1-0": "False",
    "dev-1-2-0": "True",
    "dev-1-0-1": "True",
    "dev-1-1-1": "False",
    "dev-2-0-0": "False",
}


def test_scores_by_hand(tmp_path):
    # sentence 0 of set 1 has one pair wrong, sentence 1 has both right, set 2 has its only pair wrong
    predictions = dict.fromkeys(LABELS, True) | {"dev-1-1-0": True, "dev-1-1-1": False}
    found = score(examples(tmp_path / "dev.json", LABELS), predictions)
    assert found == {
        "accuracy": pytest.approx(100 * 4 / 6),
        "consistency": pytest.approx(100 / 3),
        "examples": 6,
        "groups": 3,
        "missingPredictions": 0,
        "unknownPredictions": 0,
    }


def test_missing_unknown_and_doubled(tmp_path):
    labelled = examples(tmp_path / "dev.json", LABELS)
    answers = {name: label == "True" for name, label in LABELS.items()}
    assert score(labelled, answers)["consistency"] == 100
    fewer = {name: answer for name, answer in answers.items() if name != "dev-1-2-0"}
    with pytest.raises(InputError, match="1 examples have no prediction, such as dev-1-2-0"):
        score(labelled, fewer)
    counted = score(labelled, fewer, missing="wrong")
    assert (counted["accuracy"], counted["missingPredictions"]) == (pytest.approx(100 * 5 / 6), 1)
    assert counted["consistency"] == pytest.approx(100 * 2 / 3)
    with pytest.raises(InputError, match="answer no example of the file, such as dev-7-0-0"):
        score(labelled, answers | {"dev-7-0-0": True})
    assert score(labelled, answers | {"dev-7-0-0": True}, unknown="count")["unknownPredictions"] == 1
    with pytest.raises(InputError, match="appears twice"):
        score([*labelled, labelled[0]], answers)
    with pytest.raises(InputError, match="no examples"):
        score([], answers)


def test_predictions_file(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("identifier,label\ndev-1-0-0,True\n\ndev-1-1-0, false\n")
    assert read_predictions(file) == {"dev-1-0-0": True, "dev-1-1-0": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dev-1-0-0,True\ndev-1-1-0", r"p\.csv:2.*not identifier,label"),
        ("dev-1-0-0,perhaps", r"p\.csv:1"),
        ("dev-1-0-0,True\ndev-1-0-0,False", r"p\.csv:2.*twice"),
        ("x,True", r"p\.csv:1"),
    ],
)
def test_bad_predictions_name_the_line(tmp_path, text, message):
    file = tmp_path / "p.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(file)


def test_absent_predictions(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_predictions(tmp_path / "none.csv")
