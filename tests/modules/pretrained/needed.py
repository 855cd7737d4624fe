"""Marks for tests that need a fetched asset: they skip with the command that brings it."""

from __future__ import annotations

import pytest

from tutelage import assets
from tutelage.modules.pretrained import REQUIRED


def needs(*names: str) -> pytest.MarkDecorator:
    absent = [name for name in names if assets.asset(name).find() is None]
    return pytest.mark.skipif(bool(absent), reason=f"not here: tutelage assets fetch {' '.join(absent)}")


needs_networks = needs(*REQUIRED)
needs_photos = needs(*REQUIRED, "photos", "photos-more")
