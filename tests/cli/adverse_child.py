"""Runs every command that writes, in one process, where nothing can be written: on a full disk, or below a read-only folder.

Its arguments: "full" or "read-only", and a folder prepared by the test. Prints {command: [exit code, error, files left]}.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tutelage.cli import main

ALLOWED = 40
"""Bytes that one file may hold on the full disk."""


def commands(home: Path, out: Path) -> dict[str, list[Any]]:
    modules = [word for path in sorted((home / "modules").iterdir()) for word in ("--module", path)]
    image = ["--image", home / "0.png", *modules]
    return {
        "run": ["run", home / "p.txt", *image, "--json", out / "trace.json"],
        "run batch": ["run", "--batch", home / "batch.jsonl", "--images", home, *modules, "--json", out / "traces.jsonl"],
        "run cache": ["run", home / "p.txt", *image, "--cache", out / "results.sqlite"],
        "solve": ["solve", home / "0.png", "What color is the circle?", *modules, "--html", out / "page.html"],
        "generate": ["generate", "What color is the circle?", "--json", out / "programs.json"],
        "synthetic": ["synthetic", "make", out / "synthetic", "--images", "2"],
        "distill": ["distill", home / "recipe.toml", "--out", out / "run"],
        "cache": ["cache", "build", home / "recipe.toml", "--set", f'cache.folder="{out}/cache"'],
        "doctor": ["doctor", home / "recipe.toml", "--steps", "2", "--json", out / "doctor.json"],
        "report": ["report", home / "study.json", "--out", out / "report.html"],
        "collect": ["sdvp", "collect", home / "batch.jsonl", out / "records", "--layout", "programs", "--quick"],
        "label": ["sdvp", "label", home / "records", out / "labelled", "--teacher=VQA=color", "--min-confidence=0", "--quick"],
        "train": ["sdvp", "train", home / "labelled", out / "taught", "--steps", "2", "--quick"],
        "systems": ["systems", "--json", out / "systems.json"],
    }


def run(words: list[Any]) -> tuple[int, str]:
    result = CliRunner().invoke(main.app, [str(word) for word in words])
    fault = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    return result.exit_code, fault or result.output[-300:]


def adverse(how: str, home: Path) -> None:
    out = home / "out" if how == "full" else Path("/proc/self/none")
    found = {}
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (ALLOWED, ALLOWED))
    for name, words in commands(home, out).items():
        code, said = run(words)
        left = [str(file) for file in out.rglob("*") if file.is_file() and file.stat().st_size >= ALLOWED] if how == "full" else []
        found[name] = [code, said, left]
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "list":
        home = Path(sys.argv[2])
        print(json.dumps({name: run(words) for name, words in commands(home, home / "sound").items()}))
    else:
        adverse(sys.argv[1], Path(sys.argv[2]))
