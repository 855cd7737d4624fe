"""Scene graphs as teachers: they say what was annotated, in the module's words, and nothing of what was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tutelage.datasets.gqa import GqaStep, SceneGraph, SceneObject
from tutelage.errors import InputError
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Verify, Vqa
from tutelage.programs.image_cache import FileImage, ImageCache, ResizePolicy
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp.real_data.scene_graph_teacher import SceneGraphs, graph_teacher, property_types

SEMANTICS = [
    [
        GqaStep("select", "bowl (1)", ()),
        GqaStep("filter color", "not(red)", (0,)),
        GqaStep("verify color", "light blue ", (1,)),
        GqaStep("choose material", "wood|metal", (1,)),
        GqaStep("verify rel", "cup,on,o (2)", (1,)),
        GqaStep("choose name", "cup|bowl", (1,)),
        GqaStep("choose older", "", (0, 1)),
        GqaStep("filter", "clean", (0,)),
    ]
]
WORDS = Vocabulary((("color", ("red", "light blue")), ("yes/no", ("yes", "no"))), ("bowl", "cup"))


def thing(key: str, name: str, box: tuple[int, int, int, int], *attributes: str) -> SceneObject:
    return SceneObject(key, name, *box, attributes, ())


GRAPH = SceneGraph(
    "n1",
    200,
    100,
    {
        "1": thing("1", "bowl", (20, 20, 40, 40), "red", "metal"),
        "2": thing("2", "coffee cup", (120, 20, 40, 40), "light blue"),
        "3": thing("3", "bowl", (160, 60, 20, 20), "clean"),
    },
)


@pytest.fixture
def image(tmp_path: Path) -> FileImage:
    Image(np.zeros((3, 50, 100), np.uint8)).to_pil().save(tmp_path / "n1.jpg")  # half the size that the graph speaks of
    return ImageCache().image(tmp_path / "n1.jpg")


@pytest.fixture
def graphs() -> SceneGraphs:
    return SceneGraphs({"n1": GRAPH}, property_types(SEMANTICS))


def test_kinds_come_from_the_functional_programs(graphs: SceneGraphs) -> None:
    assert graphs.kinds == {"color": {"red", "light blue"}, "material": {"wood", "metal"}}


def locate(graphs: SceneGraphs, image: Image, phrase: str) -> list[tuple[float, ...]] | None:
    found = graphs.locate(Call("LOC", {"image": image, "object": phrase}))
    return None if found is None else [tuple(box[:4]) for box in found]


def test_boxes_in_the_pixels_of_the_picture_and_of_a_crop(graphs: SceneGraphs, image: FileImage) -> None:
    assert locate(graphs, image, "coffee cup") == [(60, 10, 80, 30)]
    assert locate(graphs, image, "bowl") == [(10, 10, 30, 30), (80, 30, 90, 40)]
    assert locate(graphs, image.crop(50, 5, 100, 50), "coffee cup") == [(10, 5, 30, 25)]
    assert locate(graphs, image.crop(25, 0, 100, 50), "bowl") == [(55, 30, 65, 40)], "less than half of the other is seen"
    small = ImageCache(ResizePolicy(50)).image(image.path)
    assert locate(graphs, small, "coffee cup") == [(30, 5, 40, 15)]


def test_a_phrase_with_properties(graphs: SceneGraphs, image: FileImage) -> None:
    assert locate(graphs, image, "red bowl") == [(10, 10, 30, 30)]
    assert locate(graphs, image, "metal red bowl") == [(10, 10, 30, 30)]
    assert locate(graphs, image, "light blue coffee cup") == [(60, 10, 80, 30)]
    for unspoken in ("not red bowl", "wood bowl", "cup", "person", "object", "TOP"):
        assert locate(graphs, image, unspoken) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What color is the coffee cup?", "light blue"),
        ("What material is the coffee cup?", None),  # none is annotated
        ("What color is the person?", None),
        ("What is the coffee cup?", None),
        ("Is the coffee cup red or light blue?", "light blue"),
        ("Is the coffee cup wood or metal?", None),
        ("Is the coffee cup light blue?", "yes"),
        ("Is the coffee cup red?", "no"),  # it has another colour
        ("Is the coffee cup wood?", None),  # of its material nothing is said
        ("Is the coffee cup on the left?", None),
    ],
)
def test_questions(graphs: SceneGraphs, image: FileImage, question: str, answer: str | None) -> None:
    assert graphs.ask(Call("VQA", {"image": image, "question": question})) == answer


def test_the_thing_nearest_to_the_crops_centre_is_meant(graphs: SceneGraphs, image: FileImage) -> None:
    call = {"question": "What color is the bowl?"}
    assert graphs.ask(Call("VQA", {"image": image.crop(8, 8, 32, 32), **call})) == "red"
    assert graphs.ask(Call("VQA", {"image": image.crop(78, 28, 92, 42), **call})) is None


def test_verdicts(graphs: SceneGraphs, image: FileImage) -> None:
    crop = image.crop(8, 8, 32, 32)

    def verdict(word: str) -> bool | None:
        return graphs.verify(Call("VERIFY", {"image": crop, "object": "bowl", "property": word}))

    assert (verdict("red"), verdict("light blue"), verdict("wood"), verdict("clean")) == (True, False, False, None)


def test_teachers_speak_of_images_with_a_graph_in_the_modules_words(graphs: SceneGraphs, image: FileImage, tmp_path: Path) -> None:
    vqa = Vqa.build(FiLMConfig(WORDS), 0)
    teacher = graph_teacher(vqa, graphs)
    asked = [
        Call("VQA", {"image": image, "question": question})
        for question in ("What color is the coffee cup?", "What material is the bowl?", "Is the coffee cup red?")
    ]
    said = [label and label.value for label in teacher.label(asked)]
    assert said == ["light blue", None, "no"], "metal is no word of the module"
    image.path.rename(tmp_path / "n2.jpg")
    other = ImageCache().image(tmp_path / "n2.jpg")
    plain = Image(np.zeros((3, 8, 8), np.uint8))
    strangers = [Call("VQA", {"image": view, "question": "What color is the coffee cup?"}) for view in (other, plain)]
    assert teacher.label(strangers) == [None, None]
    verify = graph_teacher(Verify.build(FiLMConfig(WORDS), 0), graphs)
    assert verify.version == teacher.version != graph_teacher(vqa, SceneGraphs({}, graphs.kinds)).version


def test_labels_are_lessons(graphs: SceneGraphs, image: FileImage) -> None:
    loc = Loc.build(LocConfig(("bowl", "cup")), 0)
    calls = [Call("LOC", {"image": image, "object": "bowl"})]
    (label,) = graph_teacher(loc, graphs).label(calls)
    assert label is not None and label.value[0] == Box(10, 10, 30, 30)
    assert loc.training_examples(calls, [label]).targets["heat"]["asked"].tolist() == [[1, 0]]


def test_another_module_cannot_be_taught(graphs: SceneGraphs) -> None:
    module = Loc.build(LocConfig(("bowl",)), 0)
    module.name = "SEG"  # type: ignore[misc]
    with pytest.raises(InputError, match="cannot teach SEG"):
        graph_teacher(module, graphs)
