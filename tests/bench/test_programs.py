from __future__ import annotations

import pytest

from tutelage.bench.programs import measure
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call

from ..programs.stubs import Stub, by_name, loc, picture, vqa

TEXT = """B=LOC(image=IMAGE,object='{noun}')
I=CROP(image=IMAGE,box=B)
X=VQA(image=I,question='What is it?')
FINAL_RESULT=RESULT(var=X)"""


class Accelerator:
    """A clock that only modules move: a batch costs 20, a call 1."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, module: Stub) -> Stub:
        run = module.run

        def timed(calls: list[Call]):
            self.now += 20 + len(calls)
            return run(calls)

        module.run = timed
        return module


def programs(number: int) -> list:
    return [(TEXT.format(noun=("star", "sign")[index % 2]), {"IMAGE": picture(index % 5)}) for index in range(number)]


def test_the_figures_are_what_the_modules_cost() -> None:
    clock = Accelerator()
    modules = symbolic_modules() | by_name(clock.work(loc(batch_size=16)), clock.work(vqa(batch_size=16)))
    result = measure(programs(64), modules, rounds=3, clock=clock)
    assert result["batched_programs_per_s"] == 64 / (2 * 4 * 36)
    assert result["one_at_a_time_programs_per_s"] == 64 / (2 * 64 * 21)
    assert result["ceiling_programs_per_s"] == 64 / (2 * 84)
    assert result["speedup"] == pytest.approx(64 * 21 / (4 * 36))
    assert result["share_of_ceiling"] == pytest.approx(84 / (4 * 36))
    assert result["own_us_per_step"] == 0
    assert (result["steps"], result["network_calls"]) == (256, {"LOC": 64, "VQA": 64})
    assert (result["programs"], result["images"], result["distinct_texts"]) == (64, 5, 2)


def test_the_real_clock_gives_positive_figures() -> None:
    result = measure(programs(20), symbolic_modules() | by_name(loc(), vqa()), rounds=1)
    for name in ("batched_programs_per_s", "one_at_a_time_programs_per_s", "ceiling_programs_per_s", "own_us_per_step"):
        assert result[name] > 0


def test_failing_programs_are_not_measured() -> None:
    with pytest.raises(InputError, match="program 0"):
        measure([("(", {"IMAGE": picture(0)})], symbolic_modules())
    with pytest.raises(InputError, match="no programs"):
        measure([], symbolic_modules())
