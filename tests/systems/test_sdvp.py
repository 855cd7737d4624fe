"""SDVP is listed beside the systems it uses; the experiment's questions are those it describes."""

from __future__ import annotations

import numpy as np
import torch

from tutelage import registry, sdvp
from tutelage.distillation.data import TensorData
from tutelage.experiments.sdvp import CUT, DIGITS, LEFT_HALF, Digit, answers_of, questions
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call

DATA = TensorData(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10)


def test_it_is_found_by_its_name_and_compiles() -> None:
    entry = registry.find("sdvp")
    assert entry.is_tool and entry.target.compile is sdvp.compile
    figures = entry.target.tiny_run(3)
    assert figures["accuracy after"] > figures["accuracy before"]


def test_only_the_left_half_of_a_question_is_read() -> None:
    plain, faint = questions(DATA, "plain", False), questions(DATA, "faint", True, known=DIGITS[:5])
    assert [question.answer for question in faint] == [DIGITS[int(label)] for label in DATA.labels if label < 5]
    left = plain[3].images["IMAGE"].bytes[0, :, :8]
    assert np.array_equal(left, (DATA.inputs[3, 0].numpy() * 255).astype(np.uint8))
    assert faint[3].images["IMAGE"].bytes.min() >= 0 and faint[3].images["IMAGE"].bytes.std() < left.std()


def test_the_program_asks_the_module_about_that_half() -> None:
    reader = Digit.with_classes(*DIGITS, pixels=8)
    modules = {**symbolic_modules(), "LEFT_HALF": LEFT_HALF, "CUT": CUT, "DIGIT": reader}
    of = questions(DATA, "plain", False)
    calls = [Call("DIGIT", {"image": question.images["IMAGE"].crop(0, 0, 8, 8)}) for question in of]
    assert [trace.answer for trace in sdvp.solve(of, modules)] == answers_of(reader)(calls)
