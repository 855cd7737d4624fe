"""Teach your own network inside your own programs: python examples/own_agent.py PROGRAMS.jsonl IMAGES OUT"""

import sys

import torch
from torch import nn

import tutelage
from tutelage import sdvp
from tutelage.modules.classification import Classifier
from tutelage.modules.symbolic import symbolic_modules


class Color(Classifier):  # your network, as the module COLOR(image=…) of both program languages
    name = "COLOR"

    @classmethod
    def build_network(cls, config):
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, len(config.answers)))


@tutelage.module
def MIDDLE(image: tutelage.Image) -> list[tutelage.Box]:  # your function, as another
    return [tutelage.Box(image.width / 4, image.height / 4, image.width * 3 / 4, image.height * 3 / 4)]


def teacher(calls):  # your teacher: anything that answers calls; it needs no gradients and no labels
    return [("red", "green", "blue")[call.args["image"].bytes.mean((1, 2)).argmax()] for call in calls]


if __name__ == "__main__":
    programs, images, out = sys.argv[1:]
    torch.set_num_threads(1)
    questions, held_out = sdvp.split_by_image(sdvp.questions_from(programs, images), 0.2)
    modules = {**symbolic_modules(), "COLOR": Color.with_classes("red", "green", "blue"), "MIDDLE": MIDDLE}
    result = sdvp.compile(questions, modules, teachers={"COLOR": teacher})  # known answers check the teacher first
    result.modules["COLOR"].save(out)
    after = {**modules, "COLOR": tutelage.load(out, Color)}
    print(f"on {len(held_out)} questions of other images: before {sdvp.accuracy(held_out, modules):.2f}", end="  ")
    print(f"after {sdvp.accuracy(held_out, after):.2f}")
