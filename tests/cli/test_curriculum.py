"""`tutelage curriculum`: orders designed from images, arrays and tables, and orders that are measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tutelage.cli import main

runner = CliRunner()


def tutelage(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["curriculum", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def images(folder: Path, classes: int = 4, count: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class-{number}").mkdir(parents=True)
        shade = 60 * number + 40
        for place in range(count):
            pixels = np.clip(rng.normal(shade, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{number}" / f"{place}.png")
    return folder


def test_a_folder_of_images_is_designed(tmp_path: Path) -> None:
    folder, out, table, picture = images(tmp_path / "images"), tmp_path / "o.jsonl", tmp_path / "d.csv", tmp_path / "d.svg"
    words = ("--image-size", 8, "--distance", "euclidean", "--out", out, "--distances", table, "--picture", picture)
    code, shown, err = tutelage("design", folder, *words, "--top", 3)
    assert code == 0 and len(shown.splitlines()) == 3 and shown.count(" > ") == 9, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and sorted(rows[0]["order"]) == [f"class-{i}" for i in range(4)] and "<svg" in picture.read_text()
    code, again, _ = tutelage("design", table, "--top", 3, "--normalized")
    assert code == 0 and again == shown, "the distances that were written give the same orders"


def test_an_encoder_by_name(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", classes=3, count=2)
    words = ("--encoder", "small-cnn", "--set", "options.inputs=3", "--set", "layer=body", "--image-size", 8, "--json", "-")
    code, shown, err = tutelage("design", folder, *words)
    assert code == 0 and sum(json.loads(shown)["centrality"].values()) == pytest.approx(1), err
    code, _, err = tutelage("design", folder, "--encoder", "small-cn")
    assert code == 2 and "small-cn" in err and "remedy" in err


def test_orders_are_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(48) % 3
    inputs = rng.standard_normal((3, 10))[labels] + rng.standard_normal((48, 10))
    np.savez(tmp_path / "data.npz", inputs=inputs.astype(np.float32), labels=labels)
    out, picture = tmp_path / "m.jsonl", tmp_path / "m.svg"
    words = ("--seeds", 2, "--batch-size", 4, "--out", out, "--picture", picture, "--json", tmp_path / "r.json")
    code, shown, err = tutelage("run", tmp_path / "data.npz", "--learner", "replay", *words)
    assert code == 0 and "Spearman" in shown and "stable over seeds" in shown, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6 and rows[0]["F"] >= rows[-1]["F"] and rows[0]["low"] <= rows[0]["F"] <= rows[0]["high"]
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["agreement"]["chance"] == pytest.approx(1 / 6) and "<svg" in picture.read_text()
    orders = tmp_path / "orders.jsonl"
    orders.write_text('{"order": ["2", "0", "1"]}\n')
    code, shown, err = tutelage("run", tmp_path / "data.npz", "--orders", orders, "--seeds", 1, "--learner", "naive")
    assert code == 0 and "2 > 0 > 1" in shown, err


@pytest.mark.parametrize(
    ("text", "fault"), [("class,a,b\na,0,\nb,1,0\n", "d.csv:2: b: a missing value"), ("class,a\na,0\n", "1 classes")]
)
def test_bad_tables_are_refused(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    code, _, err = tutelage("design", tmp_path / "d.csv")
    assert code == 2 and fault in err and "remedy" in err


def test_images_without_classes_are_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", classes=1, count=2) / "class-0"
    code, _, err = tutelage("design", folder)
    assert code == 2 and "class" in err and "remedy" in err


def test_settings_without_an_encoder_are_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", classes=2, count=2)
    code, _, err = tutelage("design", folder, "--set", "layer=body")
    assert code == 2 and "--encoder" in err
