"""The list of systems, and the state that kept results give them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tutelage import experiments, registry
from tutelage.cli import systems

from .recipes import tutelage

ROOT = Path(__file__).parents[2]


SHOWN, MISSED = {"verdict": "shown"}, {"verdict": "not shown here"}


def test_a_kept_result_gives_its_verdict(tmp_path: Path) -> None:
    (tmp_path / "kd.json").write_text(json.dumps({"verdict": "shown", "claims": [SHOWN]}))
    (tmp_path / "dkd.json").write_text(json.dumps({"verdict": "not shown here", "claims": [SHOWN, MISSED]}))
    code, out, said = tutelage("systems", "--results", tmp_path, "--json", "-")
    assert code == 0, said
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() == registry.systems().keys()
    assert rows["kd"] == {"name": "kd", "card": "kd", "kind": "distillation", "state": "evaluated"} | {
        "verdict": "shown",
        "claims_shown": 1,
        "claims": 1,
    }
    assert rows["dkd"]["verdict"] == "not shown here"
    assert (rows["dkd"]["claims_shown"], rows["dkd"]["claims"]) == (1, 2) and rows["nd-loss"]["claims"] is None
    assert (rows["nd-loss"]["state"], rows["nd-loss"]["verdict"]) == ("ready", None)
    assert "kd" in said and "evaluated" in said
    legend = said[said.index("kind    ") :]
    assert "state   evaluated" in legend and "state   ready" in legend and "verdict not shown here" in legend
    used = {row["kind"] for row in rows.values()}
    assert used < registry.KINDS.keys()
    for kind in registry.KINDS:  # only the words that the table uses
        assert (f"kind    {kind}" in legend) == (kind in used)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "tutelage show kd"),
        ('{"verdict": 1}', "not the result of an experiment"),
        ('{"verdict": "shown", "claims": [1]}', "a claim without"),
    ],
)
def test_a_result_that_is_none_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "kd.json").write_text(text)
    code, out, said = tutelage("systems", "--results", tmp_path)
    assert code == 2 and "kd.json" in said and words in said


def test_outside_the_checkout_the_shipped_results_are_listed_and_own_ones_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {row["name"]: row for row in json.loads(tutelage("systems", "--json", "-")[1])}
    for name in ("kd", "nd-loss"):
        shipped = json.loads((ROOT / systems.RESULTS / f"{name}.json").read_text())["verdict"]
        assert (rows[name]["state"], rows[name]["verdict"]) == ("evaluated", shipped)
    (tmp_path / systems.RESULTS).mkdir(parents=True)
    (tmp_path / systems.RESULTS / "kd.json").write_text(json.dumps({"verdict": "mine", "claims": []}))
    rows = {row["name"]: row for row in json.loads(tutelage("systems", "--json", "-")[1])}
    assert rows["kd"]["verdict"] == "mine" and rows["nd-loss"]["state"] == "evaluated"


def test_the_wheel_carries_the_results() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {str(systems.RESULTS): f"tutelage/{systems.RESULTS}"}


def test_committed_results_are_whole() -> None:
    found = sorted((ROOT / systems.RESULTS).glob("*.json"))
    assert {file.stem for file in found} <= set(experiments.names())
    for file in found:
        result = json.loads(file.read_text())
        assert {"system", "verdict", "arms", "metric", "seconds", "seeds", "limits", "command", "versions"} <= result.keys(), file
        assert result["system"] == file.stem and result["verdict"] in ("shown", "not shown here") and not result["smoke"]
        assert all({"mean", "sd", "n"} == arm.keys() and arm["n"] >= 3 for arm in result["arms"].values())
        shown = all(claim["verdict"] == "shown" for claim in result["claims"])
        assert (result["verdict"] == "shown") == shown and f"tutelage show {file.stem}" in result["command"]
