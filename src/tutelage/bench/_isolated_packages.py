"""Packages for a benchmark alone, installed beside the project and never into it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tutelage import storage


def torchvision() -> str:
    """The requirement of a torchvision that belongs to the torch at hand: their releases go in step."""
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return f"torchvision=={major - 2}.{minor + 15}.*"


def install(name: str, wanted: Sequence[str]) -> tuple[Path | None, str]:
    """The folder that holds ``wanted`` without their dependencies, filled on first use by uv or pip; or None and why it
    cannot be had. ``name`` says what is in it: another version is another name."""
    import torch

    folder = storage.cache_home() / "bench" / f"{name}-torch-{'.'.join(torch.__version__.split('.')[:2])}"
    if folder.exists():
        return folder, ""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    installer = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        done = subprocess.run(
            [*installer, "--no-deps", "--target", f"{scratch}/packages", *wanted], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return None, f"cannot be installed: {done.stderr.strip()[-300:]}"
        (Path(scratch) / "packages").replace(folder)
    return folder, ""
