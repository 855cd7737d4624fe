"""COCO's 80 classes, and the everyday words that name them: small tables, ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from tutelage.modules.vocabulary import tokens
from tutelage.programs.generators.grammar import singular

CLASSES: tuple[str, ...] = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,"
    "cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,"
    "laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush".split(",")
)
"""In the order of the scores; the source is the COCO data set (Lin et al., 2014), its 80 classes with boxes."""

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "animal": CLASSES[14:24],
        "pet": ("cat", "dog"),
        "vehicle": CLASSES[1:9],
        "fruit": ("banana", "apple", "orange"),
        "food": CLASSES[46:56],
        "furniture": ("chair", "couch", "bed", "dining table", "bench"),
        "bag": ("backpack", "handbag", "suitcase"),
        "table": ("dining table",),
        "ball": ("sports ball",),
        "plant": ("potted plant",),
        "phone": ("cell phone",),
        "glass": ("wine glass", "cup"),
    }
)
"""Words for several classes together, or for the one of them that COCO has."""

SAME: Mapping[str, str] = MappingProxyType(
    {
        "people": "person", "human": "person", "bike": "bicycle", "motorbike": "motorcycle", "plane": "airplane",
        "aeroplane": "airplane", "aircraft": "airplane", "sofa": "couch", "television": "tv", "fridge": "refrigerator",
        "mobile phone": "cell phone", "cellphone": "cell phone", "smartphone": "cell phone", "doughnut": "donut",
        "computer mouse": "mouse", "ship": "boat", "purse": "handbag", "notebook computer": "laptop", "necktie": "tie",
    }
)  # fmt: skip
"""Other words for a class."""

NARROWER: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys("man woman boy girl child kid baby guy lady men women children astronaut photographer".split(), "person"),
        "kitten": "cat", "puppy": "dog", "mug": "cup", "teacup": "cup", "coffee cup": "cup", "taxi": "car", "van": "car",
        "armchair": "chair", "stool": "chair", "teaspoon": "spoon", "pony": "horse", "calf": "cow", "lamb": "sheep",
    }
)  # fmt: skip
"""Words for some of a class only: the whole class is looked for, and the call is marked as out of vocabulary."""


@lru_cache(maxsize=10_000)
def classes_named(phrase: str) -> tuple[tuple[int, ...], bool]:
    """The classes that ``phrase`` names, and whether it names exactly those.

    The longest ending of the phrase that is a known word counts: "the red cars" names car, and not exactly.
    """
    words = [word for word in tokens(phrase) if word not in ("a", "an", "the")]
    for start in range(len(words)):
        for noun in (" ".join(words[start:]), " ".join([*words[start:-1], singular(words[-1])])):
            whole = start == 0
            if noun in CLASSES:
                return (CLASSES.index(noun),), whole
            if noun in SAME:
                return (CLASSES.index(SAME[noun]),), whole
            if noun in GROUPS:
                return tuple(CLASSES.index(name) for name in GROUPS[noun]), whole
            if noun in NARROWER:
                return (CLASSES.index(NARROWER[noun]),), False
    return (), False
