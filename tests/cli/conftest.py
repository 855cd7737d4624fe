"""Album, and saved modules for every embedded one, so that no command needs to train them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tutelage.sdvp import toy_modules


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name saved modules for every embedded one."""
    folder = tmp_path_factory.mktemp("modules")
    saved = [module.save(folder / name) for name, module in toy_modules.generalists(0, quick=True).items()]
    return [word for path in saved for word in ("--module", str(path))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path
