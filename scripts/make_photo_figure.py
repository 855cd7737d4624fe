"""Draw docs/images/sdvp-photos.png: held-out photographs, and what the packaged, the naively tuned and the distilled module say.

The pictures are the first of each kind in the order of the reported questions of seed 0, and the first crops of the reported
photographs that are CC0 or in the public domain and have a right word: none is chosen by its answers.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from tutelage.experiments import sdvp_photos
from tutelage.sdvp.questions import Question

FILE = Path(__file__).parents[1] / "docs" / "images" / "sdvp-photos.png"
SIDE, COLUMN, GAP, LINE = 150, 192, 14, 19
SHOWN = ("chelsea.png", "coffee.png", "rocket.jpg")
ARMS = {"as packaged": "packaged", "distilled without replay": "no replay", "SDVP": "SDVP"}
RIGHT, WRONG = "#17703a", "#b3261e"


def main() -> None:
    """Distil with seed 0, ask, draw."""
    study = sdvp_photos.photo_study(0)
    arms = {short: category for name, category in study.arms().items() if (short := ARMS.get(name))}
    clothes = [next(q for q in study.clothes if q.answer == word) for word in sdvp_photos.WORDS]
    other = [next(q for q in study.other if q.kind == name) for name in SHOWN]
    width = len(clothes) * COLUMN + GAP
    height = 2 * (SIDE + len(arms) * LINE + 58) + GAP
    sheet = Pil.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (title, questions) in enumerate(
        (("New task: a shop's thumbnails, never seen by any arm", clothes), ("Kept: photographs that were not replayed", other))
    ):
        top = GAP + row * (height - GAP) // 2
        draw.text((GAP, top), title, "black", font)
        answers = {short: study.answers(questions, category) for short, category in arms.items()}
        for column, question in enumerate(questions):
            left = GAP + column * COLUMN
            sheet.paste(question.images["IMAGE"].to_pil().resize((SIDE, SIDE)), (left, top + 24))
            for line, (short, given) in enumerate(answers.items()):
                draw.text(
                    (left, top + 30 + SIDE + line * LINE),
                    _short(f"{short}: {given[column]}"),
                    RIGHT if _right(question, given[column]) else WRONG,
                    font,
                )
    sheet.save(FILE, optimize=True)


def _short(text: str) -> str:
    return text if len(text) <= 27 else text[:26] + "…"


def _right(question: Question, answer: object) -> bool:
    return answer == question.answer if question.answer is not None else answer in sdvp_photos.RIGHT[question.kind]


if __name__ == "__main__":
    main()
