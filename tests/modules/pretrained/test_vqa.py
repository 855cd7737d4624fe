"""VQA, VERIFY and MATCH over a sight made by hand: what is answered, what is guessed and marked, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import MissingExtra
from tutelage.modules.pretrained.coco_classes import CLASSES
from tutelage.modules.pretrained.color_naming import COLORS, color_shares
from tutelage.modules.pretrained.nanodet import NanoDetConfig
from tutelage.modules.pretrained.perception import PhotoPerception
from tutelage.modules.pretrained.vqa import PhotoMatch, PhotoVerify, PhotoVqa
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.types import Call, ProgramFailure, RuntimeFailure
from tutelage.programs.values import Image

LABELS = ("espresso", "Egyptian cat", "missile")
WORDS = (("espresso",), ("Egyptian cat",), ("missile",))
RGB = {"red": (220, 20, 20), "green": (20, 160, 30), "blue": (20, 40, 220), "white": (250, 250, 250), "black": (5, 5, 5)}
RGB |= {"gray": (128, 128, 128), "yellow": (240, 220, 20), "orange": (240, 130, 20), "brown": (110, 60, 20)}
RGB |= {"purple": (140, 30, 210), "pink": (250, 150, 170)}


def plain(color: str, side: int = 32) -> Image:
    return Image.from_array(np.broadcast_to(np.array(RGB[color], np.uint8)[:, None, None], (3, side, side)).copy())


class MadeUp(PhotoPerception):
    """Sees by table: what each picture holds, by its key; phrases fit as the letters they share."""

    def __init__(self, seen: dict[Any, dict[str, float]], labels: dict[Any, str] | None = None):
        self.seen, self.labels, self.asked = seen, labels or {}, list[int]()
        detector = SimpleNamespace(config=NanoDetConfig(), version="d", batch_size=16)
        super().__init__(
            detector, SimpleNamespace(config=SimpleNamespace(answers=LABELS), version="c"), SimpleNamespace(version="e")
        )  # type: ignore[arg-type]

    @property
    def _words(self) -> tuple[tuple[str, ...], ...]:  # type: ignore[override]
        return WORDS

    def scores(self, images: Sequence[Image]) -> torch.Tensor:
        self.asked.append(len(images))
        rows = [[self.seen.get(image.key, {}).get(name, 0.05) for name in CLASSES] for image in images]
        return torch.tensor(rows).reshape(-1, len(CLASSES))

    def classes(self, images: Sequence[Image]) -> torch.Tensor:
        rows = [[0.9 if self.labels.get(image.key) == name else 0.05 for name in LABELS] for image in images]
        return torch.tensor(rows).reshape(-1, len(LABELS))

    def conse_similarity(self, images: Sequence[Image], phrases: Sequence[str]) -> torch.Tensor:
        wanted = [self.labels.get(image.key, "") for image in images]
        return torch.tensor([[len(set(phrase) & set(name)) / max(1, len(set(phrase))) for phrase in phrases] for name in wanted])


class Reader:
    """An OCR that knows one text, or lacks its package."""

    version = "1"

    def __init__(self, text: str | None = "CLOSED"):
        self.text = text

    def run(self, calls: Sequence[Call]) -> Any:
        if self.text is None:
            raise MissingExtra("rapidocr", "ocr")
        return SimpleNamespace(values=[self.text] * len(calls))


CAT, COFFEE, NOTHING = plain("orange"), plain("brown"), plain("white")
SIGHT = MadeUp({CAT.key: {"cat": 0.7, "dog": 0.41}}, {COFFEE.key: "espresso"})
VQA = PhotoVqa(SIGHT, Reader())  # type: ignore[arg-type]


def ask(image: Image, question: str, module: PhotoVqa = VQA) -> tuple[Any, bool]:
    answers = module.run([Call("VQA", {"image": image, "question": question})])
    assert answers.out_of_vocabulary is not None
    return answers.values[0], answers.out_of_vocabulary[0]


@pytest.mark.parametrize("color", COLORS)
def test_a_plain_picture_has_its_colour(color: str) -> None:
    shares = color_shares(plain(color))
    assert max(shares, key=shares.__getitem__) == color and shares[color] == pytest.approx(1)


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 60))
def test_shares_sum_to_one_whatever_the_pixels(seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    shares = color_shares(Image.from_array(pixels))
    assert tuple(shares) == COLORS and sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0


def test_the_middle_counts_more_than_the_edge() -> None:
    pixels = plain("green").root.copy()
    pixels[:, 8:24, 8:24] = np.array(RGB["red"], np.uint8)[:, None, None]  # a quarter of the picture
    shares = color_shares(Image.from_array(pixels))
    assert shares["red"] > shares["green"]


@pytest.mark.parametrize(
    ("image", "question", "answer"),
    [
        (CAT, "What color is the cat?", "orange"),
        (CAT, "What is the colour of this cat?", "orange"),
        (CAT, "What animal is this?", "cat"),
        (CAT, "What kind of animal is in the picture?", "cat"),
        (CAT, "What is in the picture?", "cat, dog"),
        (COFFEE, "What is this?", "espresso"),
        (COFFEE, "What do you see?", "espresso"),
        (CAT, "Is this a cat?", "yes"),
        (CAT, "Is there a horse in the photo?", "no"),
        (COFFEE, "Is this an espresso?", "yes"),
        (CAT, "Is this an espresso?", "no"),
        (CAT, "Is the cat orange or blue?", "orange"),
        (NOTHING, "What does the sign say?", "CLOSED"),
        (NOTHING, "Read the text.", "CLOSED"),
        (NOTHING, "What is written on the door?", "CLOSED"),
    ],
)
def test_what_is_answered(image: Image, question: str, answer: str) -> None:
    assert ask(image, question) == (answer, False)


def test_what_only_conse_could_judge_is_marked_and_has_no_probability() -> None:
    answers = VQA.run([Call("VQA", {"image": COFFEE, "question": q}) for q in ("Is this a press?", "Is this a press or a gull?")])
    assert answers.values == ["yes", "press"] and answers.out_of_vocabulary == [True, True]
    assert answers.distributions == [None, None]
    match = PhotoMatch(SIGHT)
    assert match.version.startswith("conse-uncalibrated")
    found = match.run([Call("MATCH", {"image": COFFEE, "options": ["gull", "press"]})])
    assert found.values == ["press"] and found.distributions == [None]


@pytest.mark.parametrize(
    "question", ["Why is the cat sad?", "Who is this?", "What is the person holding?", "What color is the cat's nose?", "", "?"]
)
def test_what_is_refused_says_what_would_answer_it(question: str) -> None:
    refused, _ = ask(CAT, question)
    assert isinstance(refused, RuntimeFailure) and "VQA model" in str(refused.remedy) and "--module" in str(refused.remedy)


def test_no_animal_is_not_answered_by_the_likeliest_one() -> None:
    refused, _ = ask(NOTHING, "What animal is this?")
    assert isinstance(refused, RuntimeFailure) and "no animal is seen" in str(refused)


def test_a_missing_extra_fails_its_own_calls_alone() -> None:
    module = PhotoVqa(SIGHT, Reader(None))  # type: ignore[arg-type]
    calls = [Call("VQA", {"image": CAT, "question": q}) for q in ("What does it say?", "What color is it?")]
    refused, color = module.run(calls).values
    assert isinstance(refused, RuntimeFailure) and "tutelage[ocr]" in str(refused.remedy) and color == "orange"


def test_calls_of_a_kind_are_one_batch_and_answered_as_if_alone() -> None:
    images = [CAT, NOTHING, COFFEE, CAT]
    calls = [Call("VQA", {"image": image, "question": "Is there a cat?"}) for image in images]
    SIGHT.asked.clear()
    together = VQA.run(calls).values
    assert SIGHT.asked == [4] and together == ["yes", "no", "no", "yes"]
    assert together == [VQA.run([call]).values[0] for call in calls]


def test_verify_judges_colours_and_things_and_refuses_the_rest() -> None:
    def verify(noun: str, word: str) -> Any:
        return PhotoVerify(SIGHT).run([Call("VERIFY", {"image": CAT, "object": noun, "property": word})]).values[0]

    assert verify("cat", "orange") is True and verify("cat", "blue") is False
    assert verify("cat", "cat") is True and verify("cat", "horse") is False
    assert isinstance(verify("cat", "asleep"), ProgramFailure)


@pytest.mark.parametrize("options", [[], "cat", 3, None])
def test_match_needs_a_list_of_options(options: Any) -> None:
    (refused,) = PhotoMatch(SIGHT).run([Call("MATCH", {"image": CAT, "options": options})]).values
    assert isinstance(refused, RuntimeFailure)


def test_a_kitten_is_told_by_the_cat_and_marked() -> None:
    assert ask(CAT, "Is this a kitten?") == ("yes", True) and ask(CAT, "Is this a cat?") == ("yes", False)


def test_viper_programs_ask_the_same_modules() -> None:
    modules = {**symbolic_modules(), "VQA": VQA, "VERIFY": PhotoVerify(SIGHT), "MATCH": PhotoMatch(SIGHT)}
    parser = viper.Parser({name: module.signature for name, module in modules.items()})
    body = 'p = ImagePatch(image)\n    return [p.simple_query("What is this?"), p.verify_property("cup", "brown"), '
    text = f'def execute_command(image):\n    {body}p.best_text_match(["gull", "press"])]'
    (trace,) = run([Job("x", parser.try_parse(text, ("IMAGE",)), {"IMAGE": COFFEE})], RunContext(modules))
    assert (trace.status, trace.answer) == ("ok", ["espresso", True, "press"]), trace.error
    uncalibrated = [step for step in trace.steps if step.module == "MATCH"]
    assert uncalibrated and all(step.module_version.startswith("conse-uncalibrated") for step in uncalibrated)
