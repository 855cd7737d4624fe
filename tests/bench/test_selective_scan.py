from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tutelage.bench.selective_scan import bench
from tutelage.cli import main
from tutelage.systems.mamba_pkd import PATHS


def test_every_path_is_timed_and_the_fastest_is_picked() -> None:
    ticks = [0.0]

    def clock() -> float:
        ticks[0] += 1.0
        return ticks[0]

    result = bench((1, 2), smoke=True, clock=clock)
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert row["milliseconds"] == {path: 1000.0 for path in PATHS}
        assert row["times_faster"] == {path: 1.0 for path in PATHS}
        assert row["picked"] == "loop", "none is faster: the loop stays"
        assert row["error"] < 1e-4
    assert result["length"] == 64 and result["smoke"]


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    result = CliRunner().invoke(main.app, ["bench", "scan", "--smoke", "--batch", "2", "--json", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["batch"] == 2 and set(row["milliseconds"]) == set(PATHS) and row["picked"] in PATHS
    assert "chunked" in result.stdout and "smoke test" in result.stdout
