from __future__ import annotations

import json
from pathlib import Path

from .recipes import CACHE, tutelage, written


def test_a_healthy_recipe_passes(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE)
    code, out, said = tutelage("doctor", file, "--json", "-")
    found = json.loads(out)
    assert code == 0 and found["ok"], said
    assert [one["check"] for one in found["findings"]] == [
        "first batch", "teacher frozen", "teacher score", "gradients", "loss balance", "overfit one batch",
    ]  # fmt: skip
    assert "ok" in said and "FAIL" not in said
    assert tutelage("cache", "build", file)[0] == 0
    _, out, _ = tutelage("doctor", file, "--json", "-")
    assert "cache" in [one["check"] for one in json.loads(out)["findings"]]
    assert not (tmp_path / "run").exists()


def test_an_untrained_teacher_fails_with_its_remedy(tmp_path: Path) -> None:
    file = written(tmp_path)
    text = file.read_text()
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("weights")))
    code, out, _ = tutelage("doctor", file)
    assert code == 1 and "FAIL" in out and "remedy: " in out


def test_labels_out_of_range_fail(tmp_path: Path) -> None:
    teacher = 'teacher={model="small-cnn",options={classes=2}}'
    code, out, _ = tutelage("doctor", written(tmp_path), "--set", "student.options.classes=2", "--set", teacher)
    assert code == 1 and "2 classes" in out
