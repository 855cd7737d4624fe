"""Every Python block that a reader would copy from the README or a tutorial runs as it stands."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tutelage.reports.formatting import duration
from tutelage.storage import read_json

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "get-started.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
AGENT = (ROOT / "examples" / "own_agent.py").read_text()


def test_the_time_of_the_demo_is_the_measured_one() -> None:
    measured = duration(read_json(ROOT / "results" / "demo.json")["seconds"])
    for page in (ROOT / "README.md", ROOT / "docs" / "get-started.md"):
        assert re.findall(r"\d+ min \d+ s", page.read_text()) == [measured], page


def test_a_tutorial_shows_the_agent_as_it_is() -> None:
    assert AGENT in BLOCKS


def write_photos(folder: Path) -> None:
    """A reader's own images: two classes of JPEG files, not square."""
    rng = np.random.default_rng(0)
    for name, level in {"dark": 40, "light": 200}.items():
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(level - 40, level + 40, (70, 90, 3)).astype("uint8")
            PIL.Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block != AGENT])
def test_a_block_runs_as_it_stands(block: str, tmp_path: Path) -> None:
    if "photos/CLASS/FILE.jpg" in block:
        write_photos(tmp_path / "photos")
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_ten_line_module_is_a_module_of_both_languages(tmp_path: Path) -> None:
    block = next(block for block in BLOCKS if "BRIGHTEST" in block)
    script = tmp_path / "block.py"
    use = """
import numpy as np
from tutelage.programs import viper, visprog
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.modules.symbolic import symbolic_modules

pixels = np.zeros((3, 8, 8), np.uint8)
pixels[:, 5, 2] = 255
modules = {**symbolic_modules(), "BRIGHTEST": brightest}
signatures = {name: module.signature for name, module in modules.items()}
lines = "BOX0=BRIGHTEST(image=IMAGE)\\nFINAL_RESULT=RESULT(var=BOX0)"
function = "def execute_command(image):\\n    return brightest(image)"
programs = visprog.parse(lines, signatures), viper.parse(function, signatures)
for program in programs:
    trace = run([Job("a", program, {"IMAGE": Image.from_array(pixels)})], RunContext(modules))[0]
    print(trace.status, [tuple(map(int, box[:4])) for box in trace.answer], trace.error or "")
"""
    script.write_text(block + use)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["ok [(2, 5, 3, 6)] "] * 2


def test_the_quick_start_on_images_takes_at_most_ten_lines() -> None:
    block = next(
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "photos" in block
    )
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


def resolve(dotted: str) -> object:
    """What a dotted name in a text stands for: a module, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], found)
    raise ModuleNotFoundError(dotted)


def test_names_in_the_docs_exist_and_none_speaks_of_a_module_as_a_function() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text()
        for dotted, rest in re.findall(r"`(tutelage(?:\.\w+)+)(\([^`]*)?`", text):
            if dotted.endswith((".json", ".toml")):  # a file
                continue
            found = resolve(dotted)
            assert not rest or callable(found), f"{page}: {dotted}"
        for dotted in re.findall(r"`(tutelage(?:\.\w+)+)`\s+(?:does|writes|trains|runs)\b", text):
            assert callable(resolve(dotted)), f"{page}: the module {dotted} does nothing by itself"
