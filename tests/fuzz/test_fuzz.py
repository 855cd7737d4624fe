"""No file, whatever happened to it, ends in a traceback: each is read, or refused by a typed error.

The default draws 3,000 changes from fixed seeds; ``pytest tests/fuzz -m slow`` draws 30,000.
"""

from __future__ import annotations

import random
import re
import traceback
import warnings
from pathlib import Path

import pytest

from tutelage.digests import BLANK, seal
from tutelage.errors import TutelageError

from .formats import FORMATS
from .mutate import mutated

SEAL = re.compile(rb"xxh3_128:[0-9a-f]{32}")


def resealed(data: bytes) -> bytes:
    """``data`` with its one digest made right again; others stay as they are."""
    return seal(SEAL.sub(BLANK.encode(), data)) if len(SEAL.findall(data)) == 1 else data


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rounds", [3_000 // len(FORMATS) + 1, pytest.param(30_000 // len(FORMATS), marks=pytest.mark.slow)])
def test_every_format(name: str, rounds: int, tmp_path: Path) -> None:
    format = FORMATS[name]
    file = format.make(tmp_path)
    format.read(file)  # the sound file is read
    whole, draw, faults, refused = file.read_bytes(), random.Random(name), [], 0
    for number in range(rounds):
        data = mutated(draw, whole)
        file.write_bytes(resealed(data) if format.resealed else data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                format.read(file)
        except TutelageError as error:
            refused += 1
            str(error).encode("utf-8", "backslashreplace")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{number}: {type(error).__name__}: {str(error)[:120]} ({last.filename}:{last.lineno})")
    assert not faults, f"{len(faults)} of {rounds}:\n" + "\n".join(faults[:10])
    assert refused or name == "log"  # a damaged line of a log is left out
