"""OCR on photographs: rapidocr, which brings its networks (PP-OCR) inside its package; needs the extra ``ocr``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from tutelage.errors import MissingExtra
from tutelage.programs.types import Call, ModuleOutputs, RuntimeFailure, Signature
from tutelage.programs.values import Box, Image

MIN_SCORE = 0.5
"""The least score of a line that is read out (our choice)."""


class TextLine(NamedTuple):
    """A line of text: where it stands, in pixels of the image, and what it says; the box carries the score."""

    box: Box
    text: str


class Ocr:
    """OCR(image) -> the text in it, line by line from top to bottom; empty where there is none."""

    name, symbolic, batch_size = "OCR", False, 16
    signature = Signature({"image": "image"}, "text")

    @property
    def version(self) -> str:
        """rapidocr's own."""
        try:
            return f"rapidocr-{version('rapidocr')}"
        except PackageNotFoundError:
            return "rapidocr-absent"

    @cached_property
    def _engine(self) -> Any:
        try:
            from rapidocr import RapidOCR
        except ImportError:
            raise MissingExtra("rapidocr", "ocr") from None
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        return RapidOCR(params={"Global.log_level": "error"})

    def lines(self, image: Image) -> list[TextLine]:
        """The lines of text in ``image``, as they are read.

        Raises:
            MissingExtra: rapidocr is not installed.
        """
        found = self._engine(np.ascontiguousarray(image.bytes.transpose(1, 2, 0)[:, :, ::-1]))
        lines = []
        for corners, text, score in zip(found.boxes if found.boxes is not None else (), found.txts or (), found.scores or ()):
            (x1, y1), (x2, y2) = np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()
            lines.append(TextLine(Box(x1, y1, x2, y2, float(score)), text))
        return [line for line in lines if line.box.score >= MIN_SCORE]

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Image by image: the package takes no batches. A machine without it refuses each call, with the extra's name."""
        values: list[Any] = []
        for call in calls:
            try:
                values.append("\n".join(line.text for line in self.lines(call.args["image"])))
            except MissingExtra as error:
                values.append(RuntimeFailure(error.message, where=self.name, remedy=error.remedy))
        return ModuleOutputs(values)
