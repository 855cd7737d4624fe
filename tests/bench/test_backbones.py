from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tutelage.bench import backbones
from tutelage.bench.backbones import COMPILED, FOLDED, TUTELAGE
from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.systems.convnext import ConvNeXt

runner = CliRunner()


def way(*ms: float) -> dict[str, Any]:
    return {"ms": list(ms), "peak": 2**20}


def test_what_is_measured_is_named_by_system_and_size() -> None:
    assert backbones.resolve_systems(["convnext", "cvt:21"]) == ["convnext:tiny", "cvt:21"]
    assert backbones.resolve_systems(["convnext"], smoke=True) == ["convnext:mini"]
    everything = backbones.resolve_systems([])
    assert {"convnext:tiny", "hornet:tiny-7x7"} <= set(everything) and len({name.split(":")[0] for name in everything}) == len(
        everything
    )
    with pytest.raises(InputError, match="did you mean convnext"):
        backbones.resolve_systems(["convnet"])
    with pytest.raises(InputError, match="no size 'huge'"):
        backbones.resolve_systems(["cvt:huge"])
    with pytest.raises(InputError, match="no backbone 'kd'"):
        backbones.resolve_systems(["kd"])


def test_ratios_are_those_of_each_round_within_one_mode() -> None:
    ways = {"hf": way(100, 200, 100), TUTELAGE: way(120, 220, 110), FOLDED: way(60, 110, 55),
            "hf" + COMPILED: way(50, 50, 50), TUTELAGE + COMPILED: way(40, 40, 40)}  # fmt: skip
    found = backbones.compare_variants("net:small", ways)
    assert [(it["way"], it["than"], it["time_ratio"]) for it in found] == [
        (TUTELAGE, "hf", pytest.approx(1.1)),
        (FOLDED, TUTELAGE, pytest.approx(0.5)),
        (TUTELAGE + COMPILED, "hf" + COMPILED, pytest.approx(0.8)),
    ]
    (verdict,) = backbones.verdicts(found)
    assert verdict["met"] and verdict["claim"] == "net:small over hf, time"
    (missed,) = backbones.verdicts(backbones.compare_variants("net:small", ways | {TUTELAGE: way(116, 300, 116)}))
    assert not missed["met"] and backbones.verdicts(backbones.compare_variants("net:small", {TUTELAGE: way(1)})) == []


def test_a_row_gives_images_a_second() -> None:
    row = backbones.row("net:small", TUTELAGE, way(100, 400, 200), {"side": 32}, batch=4)
    assert (row["images_per_s"], row["ms"], row["peak_tensor_mib"], row["side"]) == (20, 200, 1, 32)
    assert (row["system"], row["size"], row["difference"]) == ("net", "small", None)


def test_a_library_that_is_not_there_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(classes: int) -> nn.Module:
        raise ImportError("no module named elsewhere")

    monkeypatch.setattr(ConvNeXt, "references", classmethod(lambda cls, size: {"elsewhere": absent}))
    found = backbones.measure_one("convnext:mini", 1, 2, "cpu", compiled=False)
    assert set(found["ways"]) == {TUTELAGE} and "no module" in found["left_out"]["elsewhere"]
    assert found["ways"][TUTELAGE]["peak"] > 0 and found["about"]["side"] == 32


def test_the_same_weights_give_the_same_logits_beside_the_library() -> None:
    pytest.importorskip("transformers")
    found = backbones.measure_one("convnext:mini", 1, 2, "cpu", compiled=False)
    assert found["ways"]["hf"]["difference"] < 1e-4


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        backbones.run(rounds=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no cuda"):
        backbones.run(device="cuda")


@pytest.mark.slow
def test_the_command_writes_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = runner.invoke(main.app, ["bench", "backbones", "hornet", "--smoke", "--json", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["system"], row["size"], row["way"]) == ("hornet", "mini", TUTELAGE) and row["images_per_s"] > 0
    assert "mean nothing" in result.stdout
