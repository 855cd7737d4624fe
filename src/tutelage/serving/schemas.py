"""What goes over the wire: requests and answers, with an example each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEXSzb7IKCjh7dCAAAAAJUlEQVR42mNggAHmAwz8H5gYGJgE"
    "OJgYGKDoww8mBgamLxfgqgB0cwWXvsWKnAAAAABJRU5ErkJggg=="
)
EXAMPLE_PROGRAM = "BOX0=LOC(image=IMAGE,object='circle')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
EXAMPLE_QUESTION = "How many circles are there?"

Picture = Annotated[str, Field(description="A picture file (PNG, JPEG, WebP, GIF, BMP, TIFF or PPM) in base64.")]
Dsl = Annotated[Literal["visprog", "viper"], Field(description="The program's language.")]


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class RequestBase(BaseModel):
    """One picture, or a left and a right one, and what is wanted back."""

    images: Annotated[list[Picture], Field(min_length=1, max_length=2, description="One is IMAGE; two are LEFT and RIGHT.")]
    dsl: Dsl = "visprog"
    trace: Annotated[bool, Field(description="Send every step along.")] = True
    pictures: Annotated[bool, Field(description="Send the pictures that the steps looked at, as they were seen.")] = False


class SolveRequest(RequestBase):
    """A question about one picture, or a statement about two: a program is written for it and run."""

    model_config = _example({"images": [EXAMPLE_IMAGE], "question": EXAMPLE_QUESTION})
    question: Annotated[str, Field(min_length=1, max_length=2000)]


class RunRequest(RequestBase):
    """A program to run. ViperGPT programs run in a sandbox, in a process that has nothing to misuse."""

    model_config = _example({"images": [EXAMPLE_IMAGE], "program": EXAMPLE_PROGRAM})
    program: Annotated[str, Field(min_length=1, max_length=20_000)]


class BatchItem(BaseModel):
    """One of many: a program or a question, and the names of its pictures."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[str], Field(min_length=1, max_length=2, description="Names of entries in pictures.")]
    program: Annotated[str | None, Field(max_length=20_000)] = None
    question: Annotated[str | None, Field(max_length=2000)] = None
    dsl: Dsl = "visprog"

    @model_validator(mode="after")
    def _check_program_or_question(self) -> BatchItem:
        if (self.program is None) == (self.question is None):
            raise ValueError("give a program or a question, one of both")
        return self


class BatchRequest(BaseModel):
    """Many programs and questions over some pictures, each of which is sent once."""

    model_config = _example(
        {
            "pictures": {"a": EXAMPLE_IMAGE},
            "items": [{"images": ["a"], "program": EXAMPLE_PROGRAM}, {"images": ["a"], "question": EXAMPLE_QUESTION}],
        }
    )
    pictures: dict[str, Picture]
    items: Annotated[list[BatchItem], Field(min_length=1)]
    trace: Annotated[bool, Field(description="Send every step along.")] = False


class ErrorDetail(BaseModel):
    """What went wrong. ``kind`` is a word for programs to read, ``remedy`` a sentence for people."""

    kind: str
    message: str
    where: str | None = None
    remedy: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": {"kind": "busy", "message": "256 programs are held", "remedy": "ask again"}}]}
    )
    error: ErrorDetail


class ProgramInfo(BaseModel):
    """The program that ran; ``source`` names its writer, or client."""

    dsl: str
    text: str
    source: str


class ImageInfo(BaseModel):
    """A picture as it was read: its size in pixels, the key that steps call it by, and what had to be done to it."""

    width: int
    height: int
    key: str
    notes: list[str]


class RenderedImage(BaseModel):
    """A picture for people: a data URI, and the size in pixels that boxes are given in; the file may be smaller."""

    src: str
    width: int
    height: int


class Timing(BaseModel):
    """Milliseconds in the queue, and from there to the answer."""

    queued: float
    ran: float


class RunResponse(BaseModel):
    """How a program ended. ``status`` is ``ok``, or what kind of failure ``error`` tells of.

    A box is ``[x1, y1, x2, y2, score]`` in pixels, origin top-left; an image is ``{"image": key, "region": [x1, y1, x2, y2]}``.
    ``confidence`` is the product of the steps' probabilities, where modules say them; 0 where a step had no box to look at.
    """

    status: str
    answer: Any = None
    confidence: float | None = None
    program: ProgramInfo | None = None
    images: list[ImageInfo] = []
    steps: list[dict[str, Any]] | None = None
    pictures: dict[str, RenderedImage] | None = None
    ms: Timing | None = None
    error: ErrorDetail | None = None


class BatchResponse(BaseModel):
    """An answer an item, in their order."""

    answers: list[RunResponse]
