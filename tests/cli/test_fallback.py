"""An answer about something that was not found is shown as a guess."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.modules.detection import Loc, LocConfig

from .test_solve import solve


def test_a_fallback_is_shown_as_one(home: Path, taught: list[str]) -> None:
    fresh = Loc.build(LocConfig(("circle",), width=4), 0).save(home / "fresh")  # sure that nothing is there
    page, out = home / "answer.html", home / "t.json"
    code, shown, err = solve(home / "0.png", "What color is the circle?", *taught, "--module", fresh, "--html", page, "--json", out)
    assert code == 0, err
    assert "confidence 0.00" in shown and "step 2, CROP, is a fallback: there was no box" in shown
    assert json.loads(out.read_text())["confidence"] == 0
    assert "a fallback: there was no box" in page.read_text()
