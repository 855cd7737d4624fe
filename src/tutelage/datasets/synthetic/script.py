"""Programs of both languages written side by side, each step with its true value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tutelage.datasets.synthetic import oracle
from tutelage.datasets.synthetic.oracle import Box, Region
from tutelage.datasets.synthetic.scene import Scene

GoldValue = str | bool | int | list[Box] | Region | None
"""A text, truth or number; boxes in the pixels of the image that was looked at; or the region that was cut."""

DIRECTIONS = {"left": "LEFTOF", "right": "RIGHTOF", "above": "ABOVE", "below": "BELOW"}


class ImageRef(NamedTuple):
    """An image in a program: its VisProg and Python names, the region of the picture, and where it was cut from."""

    name: str
    patch: str
    region: Region


class BoxesRef(NamedTuple):
    """What one search found: its number, boxes, and the view that was searched."""

    number: int
    boxes: list[Box]
    view: ImageRef


class AnswerRef(NamedTuple):
    """An answer in a program: its number and true value."""

    number: int
    value: GoldValue


class GoldPrograms(NamedTuple):
    """A VisProg program, a ViperGPT function, and the true values: of every line, and of every module call."""

    visprog: str
    viper: str
    visprog_gold: list[GoldValue]
    viper_gold: list[GoldValue]


class GoldProgramBuilder:
    """Writes one program in both languages about ``scenes``: {"IMAGE": scene}, or {"LEFT": scene, "RIGHT": scene}.

    The two mean the same: where a search finds nothing, both go on with the whole image that was searched.
    """

    def __init__(self, scenes: Mapping[str, Scene]):
        self.scenes = scenes
        self.lines: list[str] = []
        self.gold: list[GoldValue] = []
        self.calls: list[GoldValue] = []
        self._boxes = self._images = self._answers = 0
        if "IMAGE" in scenes:
            self.python = ["def execute_command(image):", "    image_patch = ImagePatch(image)"]
        else:
            self.python = ["def execute_command(image_dict):"]
            self.python += [f'    {side}_patch = ImagePatch(image_dict["{side}"])' for side in ("left", "right")]

    def view(self, name: str = "IMAGE") -> ImageRef:
        """One of the initial images."""
        return ImageRef(name, f"{name.lower()}_patch", oracle.full_region(self.scenes[name], name))

    def locate(self, view: ImageRef, noun: str) -> BoxesRef:
        """Look for ``noun``."""
        boxes = oracle.locate(self.scenes[view.region.image], view.region, noun)
        number, self._boxes = self._boxes, self._boxes + 1
        self._line(f"BOX{number}=LOC(image={view.name},object='{noun}')", boxes)
        self._python(f'patches{number} = {view.patch}.find("{noun}")', boxes)
        return BoxesRef(number, boxes, view)

    def crop(self, boxes: BoxesRef) -> ImageRef:
        """Cut out the first thing found."""
        number, self._images = self._images, self._images + 1
        region = boxes.view.region
        if boxes.boxes:
            x1, y1, x2, y2 = boxes.boxes[0]
            grow = (oracle.GROWTH - 1) / 2
            dx, dy = (x2 - x1) * grow, (y2 - y1) * grow
            region = region.crop(x1 - dx, y1 - dy, x2 + dx, y2 + dy)
        self._line(f"IMAGE{number}=CROP(image={boxes.view.name},box=BOX{boxes.number})", region)
        self._pick(f"patch{number}", boxes)
        return ImageRef(f"IMAGE{number}", f"patch{number}", region)

    def crop_side(self, boxes: BoxesRef, direction: str) -> ImageRef:
        """Cut off what lies left, right, above or below of the first thing found."""
        number, self._images = self._images, self._images + 1
        region, whole = boxes.view.region, boxes.view.patch
        w, h = region.x2 - region.x1, region.y2 - region.y1
        x1, y1, x2, y2 = boxes.boxes[0] if boxes.boxes else (0, 0, w, h)
        x, y = int((x1 + x2) / 2), int((y1 + y2) / 2)
        part, python = {
            "left": ((0, 0, x, h), "0, 0, {r}.horizontal_center, {w}.height"),
            "right": ((x, 0, w, h), "{r}.horizontal_center, 0, {w}.width, {w}.height"),
            "above": ((0, 0, w, y), "0, {r}.vertical_center, {w}.width, {w}.height"),
            "below": ((0, y, w, h), "0, 0, {w}.width, {r}.vertical_center"),
        }[direction]
        name, anchor = f"patch{number}", f"anchor{number}"
        region = region.crop(*part)
        self._line(f"IMAGE{number}=CROP_{DIRECTIONS[direction]}(image={boxes.view.name},box=BOX{boxes.number})", region)
        self._pick(anchor, boxes)
        self.python.append(f"    {name} = {whole}.crop({python.format(r=anchor, w=whole)})")
        return ImageRef(f"IMAGE{number}", name, region)

    def ask(self, view: ImageRef, question: str) -> AnswerRef:
        """Put a question to VQA."""
        value = oracle.answer_question(self.scenes[view.region.image], view.region, question)
        number = self._answer(f"VQA(image={view.name},question='{question}')", value)
        self._python(f'answer{number} = {view.patch}.simple_query("{question}")', value)
        return AnswerRef(number, value)

    def verify(self, view: ImageRef, noun: str, word: str) -> AnswerRef:
        """Have a property verified."""
        value = oracle.verify(self.scenes[view.region.image], view.region, noun, word)
        number = self._answer(f"VERIFY(image={view.name},object='{noun}',property='{word}')", value)
        self._python(f'answer{number} = {view.patch}.verify_property("{noun}", "{word}")', value)
        return AnswerRef(number, value)

    def count(self, boxes: BoxesRef) -> AnswerRef:
        """Count what was found."""
        number = self._answer(f"COUNT(box=BOX{boxes.number})", len(boxes.boxes))
        self.python.append(f"    answer{number} = len(patches{boxes.number})")
        return AnswerRef(number, len(boxes.boxes))

    def evaluate(self, expression: str, *answers: AnswerRef, value: GoldValue) -> AnswerRef:
        """An expression whose ``{}`` stand for ``answers``; ``value`` is its true value."""
        line = expression.format(*(f"{{ANSWER{answer.number}}}" for answer in answers))
        number = self._answer(f'EVAL(expr="{line}")', value)
        python = expression.format(*(f"answer{answer.number}" for answer in answers)).replace("'", '"')
        self.python.append(f"    answer{number} = {python}")
        return AnswerRef(number, value)

    def finish(self, answer: AnswerRef) -> GoldPrograms:
        """End with ``answer``."""
        self._line(f"FINAL_RESULT=RESULT(var=ANSWER{answer.number})", answer.value)
        name = f"answer{answer.number}"
        self.python.append(f"    return bool_to_yesno({name})" if isinstance(answer.value, bool) else f"    return {name}")
        return self._programs()

    def finish_boxes(self, boxes: BoxesRef) -> GoldPrograms:
        """End with the first box that was found."""
        self._line(f"FINAL_RESULT=RESULT(var=BOX{boxes.number})", boxes.boxes)
        self._pick("answer", boxes)
        self.python.append("    return answer")
        return self._programs()

    def _programs(self) -> GoldPrograms:
        return GoldPrograms("\n".join(self.lines), "\n".join(self.python), self.gold, self.calls)

    def _line(self, line: str, value: GoldValue) -> None:
        self.lines.append(line)
        self.gold.append(value)

    def _answer(self, call: str, value: GoldValue) -> int:
        number, self._answers = self._answers, self._answers + 1
        self._line(f"ANSWER{number}={call}", value)
        return number

    def _python(self, line: str, value: GoldValue) -> None:
        self.python.append(f"    {line}")
        self.calls.append(value)

    def _pick(self, name: str, boxes: BoxesRef) -> None:
        self.python.append(f"    {name} = patches{boxes.number}[0] if len(patches{boxes.number}) > 0 else {boxes.view.patch}")
