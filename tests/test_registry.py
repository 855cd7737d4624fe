from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tutelage import registry
from tutelage.errors import InputError

SYSTEM = '''
from tutelage.registry import system

@system("{name}", kind="{kind}")
class Thing:
    """A {name} in one line.

    And more.
    """
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "made_systems"
    (folder / "big_one").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "alpha.py").write_text(SYSTEM.format(name="alpha", kind="backbone"))
    (folder / "beta.py").write_text("from made_systems.alpha import Thing\n")
    (folder / "_hidden.py").write_text(SYSTEM.format(name="hidden", kind="backbone"))
    (folder / "big_one" / "core.py").write_text(SYSTEM.format(name="big-one", kind="language"))
    (folder / "big_one" / "__init__.py").write_text("from made_systems.big_one.core import Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "made_systems"
    for name in [name for name in sys.modules if name.startswith("made_systems")]:
        del sys.modules[name]


def test_systems_are_found_by_listing_the_folder(package: str) -> None:
    found = registry.systems(package)
    assert list(found) == ["alpha", "big-one"]
    assert (found["big-one"].kind, found["big-one"].card) == ("language", "big-one")
    assert found["alpha"].summary == "A alpha in one line."
    assert registry.find("alpha", package).target.__name__ == "Thing"


def test_an_unknown_name_offers_the_nearest(package: str) -> None:
    with pytest.raises(InputError, match="did you mean alpha"):
        registry.find("alfa", package)


def test_an_unknown_kind_is_refused_where_it_is_written() -> None:
    with pytest.raises(InputError, match="did you mean backbone"):
        registry.system("x", kind="backbones")


def test_a_function_can_be_a_system_and_is_unchanged() -> None:
    def build() -> int:
        return 3

    assert registry.system("x", kind="curriculum", card="y")(build) is build
    assert build() == 3 and build.system_entry.card == "y"
