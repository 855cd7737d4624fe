"""Where nothing can be written, every command says so, with a remedy, and leaves nothing half-written under a final name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.sdvp import toy_modules

from ..reports import made_up_results
from . import adverse_child, recipes
from .test_run import COLOR, row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("adverse")
    from PIL import Image

    Image.effect_noise((48, 48), 80).convert("RGB").save(home / "0.png")
    for name, module in toy_modules.generalists(0, quick=True).items():
        module.save(home / "modules" / name)
    program = COLOR.format("What color is the circle?")
    (home / "p.txt").write_text(program)
    line = row("1", program, IMAGE="0.png") | {"question": "What color is the circle?"}
    (home / "batch.jsonl").write_text(json.dumps(line) + "\n")
    (home / "study.json").write_text(json.dumps(made_up_results.study(1)))
    recipes.written(home, recipes.CACHE)
    for name in ("collect", "label"):
        words = [str(word) for word in adverse_child.commands(home, home)[name]]
        code, said = adverse_child.run(words)
        assert code == 0, said
    return home


def child(how: str, home: Path) -> dict[str, list]:
    done = subprocess.run([sys.executable, "-W", "ignore", adverse_child.__file__, how, str(home)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_where_nothing_can_be_written(how: str, prepared: Path) -> None:
    found = child(how, prepared)
    assert {name: (code, said) for name, (code, said, _) in found.items() if code != 4 or "remedy" not in said} == {}
    assert {name: left for name, (_, _, left) in found.items() if left} == {}


def test_the_same_commands_end_well_where_there_is_room(prepared: Path) -> None:
    found = child("list", prepared)
    assert {name: (code, said) for name, (code, said) in found.items() if code not in (0, int(name == "doctor"))} == {}
