from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from . import small

SCRIPT = Path(__file__).parents[2] / "examples" / "own_agent.py"


def test_a_users_own_agent_gets_better_and_is_saved(tmp_path: Path) -> None:
    programs, images = small.write_files(tmp_path, 90)
    done = subprocess.run(
        [sys.executable, SCRIPT, programs, images, tmp_path / "color"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "18 questions of other images" in done.stdout
    before, after = map(float, re.findall(r"\d\.\d+", done.stdout))
    assert after > before and after >= 0.9
    assert {file.name for file in (tmp_path / "color").iterdir()} == {"config.json", "weights.safetensors"}


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
