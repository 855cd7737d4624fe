from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage import experiments
from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.experiments import _runner

RAN: list[int] = []


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
    RAN.append(seed)
    arms = {"alone": 80.0 + seed, "taught": 84.0 + 1.1 * seed, "same": 80.0 + seed}
    return arms | ({"further": 1.0} if all_arms else {})


def made(**changes: object) -> experiments.Experiment:
    fields = {
        "metric": "accuracy, %",
        "run": run,
        "limits": "made up",
        "claims": [experiments.better("taught", "alone"), experiments.equal("same", "alone", 1.0)],
    }
    return experiments.Experiment(**(fields | changes))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A demonstration named made-up, run in this process."""
    RAN.clear()
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_runner, "names", lambda: ["made-up"])
    module = type(sys)("tutelage.experiments.made_up")
    module.experiment = made()
    monkeypatch.setitem(sys.modules, "tutelage.experiments.made_up", module)


def show(**options: object) -> dict:
    return experiments.show("made-up", processes=1, **options)


def test_the_verdict_comes_from_paired_differences(stub: None) -> None:
    result = show(seeds=3, first_seed=5)
    assert result["verdict"] == "shown" and result["seeds"] == [5, 6, 7] == RAN
    assert result["arms"]["alone"] == {"mean": pytest.approx(86), "sd": pytest.approx(1), "n": 3}
    difference = result["claims"][0]["difference"]  # 4.5, 4.6, 4.7: 4.6 ± 4.303 * 0.1 / sqrt(3)
    assert difference["mean"] == pytest.approx(4.6)
    assert difference["lo"] == pytest.approx(4.6 - 4.30265 * 0.1 / math.sqrt(3), abs=1e-4)
    assert "further" not in result["arms"] and "further" in show(all_arms=True)["arms"]
    json.dumps(result, allow_nan=False)


def test_one_claim_that_fails_takes_the_verdict(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [experiments.better("taught", "alone"), experiments.better("same", "alone")]
    monkeypatch.setattr(sys.modules["tutelage.experiments.made_up"], "experiment", made(claims=claims))
    result = show()
    assert result["verdict"] == "not shown here"
    assert [claim["verdict"] for claim in result["claims"]] == ["shown", "not shown here"]


def test_lower_is_better_turns_the_difference(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [experiments.better("alone", "taught"), experiments.not_worse("taught", "alone", 5.0)]
    turned = made(claims=claims, higher_is_better=False)
    monkeypatch.setattr(sys.modules["tutelage.experiments.made_up"], "experiment", turned)
    result = show()
    assert [claim["verdict"] for claim in result["claims"]] == ["shown", "shown"]
    assert result["claims"][1]["difference"]["mean"] == pytest.approx(-4.2)


@pytest.mark.parametrize("options", [{"smoke": True}, {"seeds": 2}, {"seeds": 1}])
def test_a_smoke_run_and_two_seeds_show_nothing(stub: None, options: dict) -> None:
    result = show(**options)
    assert result["verdict"] == "not shown here"
    json.dumps(result, allow_nan=False)


@pytest.fixture
def interrupted(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration was stopped in its third seed, and would run now."""

    def stops_at_two(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, float]:
        if seed == 2:
            raise KeyboardInterrupt
        return run(seed, smoke, all_arms)

    module = sys.modules["tutelage.experiments.made_up"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "experiment", made(run=stops_at_two))
        show()
    assert RAN == [0, 1]


def test_an_interrupted_run_goes_on_with_the_seeds_that_are_missing(interrupted: None) -> None:
    resumed = show()
    assert RAN == [0, 1, 2, 3, 4]
    assert resumed["verdict"] == "shown" and [row["seed"] for row in resumed["per_seed"]] == [0, 1, 2, 3, 4]
    show()
    assert RAN[5:] == [0, 1, 2, 3, 4], "what was kept outlived the run"


def test_other_code_does_not_use_what_was_kept(interrupted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "_source", lambda: "other code")
    show()
    assert RAN == [0, 1, 0, 1, 2, 3, 4]


def test_a_figure_that_is_not_finite_is_refused(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = made(run=lambda seed, smoke, all_arms: {"alone": math.nan, "taught": 1.0})
    monkeypatch.setattr(sys.modules["tutelage.experiments.made_up"], "experiment", bad)
    with pytest.raises(InputError, match="arm 'alone' of seed 0 gave nan"):
        show()


def test_a_claim_about_no_arm_offers_the_nearest(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    typo = made(claims=[experiments.better("taugt", "alone")])
    monkeypatch.setattr(sys.modules["tutelage.experiments.made_up"], "experiment", typo)
    with pytest.raises(InputError, match="did you mean taught"):
        show()


def test_the_command_keeps_the_result_and_a_smoke_run_keeps_none(stub: None, tmp_path: Path) -> None:
    words = ["show", "made-up", "--processes", "1", "--results", str(tmp_path / "results")]
    result = CliRunner().invoke(main.app, [*words, "--smoke", "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["smoke"] is True and not (tmp_path / "results").exists()
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0 and "taught better than alone: +4.2" in result.output
    assert json.loads((tmp_path / "results" / "made-up.json").read_text())["verdict"] == "shown"


def test_every_demonstration_is_one() -> None:
    for name in experiments.names():
        demonstration = experiments.load_experiment(name)
        assert isinstance(demonstration, experiments.Experiment)
        assert demonstration.claims and demonstration.limits and demonstration.metric
        home = importlib.import_module(demonstration.run.__module__)
        assert getattr(home, demonstration.run.__name__) is demonstration.run, "workers must be able to find run"


@pytest.mark.parametrize("name", experiments.names())
def test_every_demonstration_smokes(name: str) -> None:
    row = _runner.run_seed(name, 0, True, True)
    for claim in experiments.load_experiment(name).claims:
        assert {side for side in (claim.arm, claim.than) if isinstance(side, str)} <= set(row["arms"])


def run_with_times(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, experiments.Figure]:
    seconds = {"alone": 10.0, "distilled": 8.0 + 0.1 * seed}
    arms = {"alone": 80.0 + seed, "distilled": 82.0 + seed}
    return {arm: {"accuracy, %": arms[arm], "time, s": seconds[arm]} for arm in arms} | {"teacher": 90.0 + seed}


def test_a_second_metric_has_its_own_direction_and_table(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [
        experiments.better("distilled", "alone"),
        experiments.better("distilled", "alone", metric="time, s"),
        experiments.better("alone", "distilled", metric="time, s"),
        experiments.better("alone", 81.0),
        experiments.equal("alone", 10.0, 0.01, metric="time, s"),
    ]
    further = [experiments.Metric("time, s", higher_is_better=False)]
    module = sys.modules["tutelage.experiments.made_up"]
    monkeypatch.setattr(module, "experiment", made(run=run_with_times, claims=claims, further_metrics=further))
    result = show()
    verdicts = [claim["verdict"] for claim in result["claims"]]
    assert verdicts == ["shown", "shown", "not shown here", "not shown here", "shown"]
    assert set(result["arms"]) == {"alone", "distilled", "teacher"}
    (times,) = result["further_metrics"]
    assert times["metric"] == "time, s" and set(times["arms"]) == {"alone", "distilled"}
    assert "time, s" in result["claims"][1]["claim"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("claim", "word"),
    [
        (experiments.better("distilled", "alone", metric="times, s"), "time, s"),
        (experiments.better("teacher", "alone", metric="time, s"), "teacher"),
    ],
)
def test_a_claim_about_an_unknown_metric_is_refused(
    stub: None, monkeypatch: pytest.MonkeyPatch, claim: experiments.Claim, word: str
) -> None:
    further = [experiments.Metric("time, s", higher_is_better=False)]
    module = sys.modules["tutelage.experiments.made_up"]
    monkeypatch.setattr(module, "experiment", made(run=run_with_times, claims=[claim], further_metrics=further))
    with pytest.raises(InputError, match=word):
        show()


def test_a_figure_of_an_unlisted_metric_is_refused(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tutelage.experiments.made_up"], "experiment", made(run=run_with_times))
    with pytest.raises(InputError, match="'time, s'"):
        show()
