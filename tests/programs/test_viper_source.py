"""What language models really write: fences, prose, headers given twice, every signature in use, modules that are imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tutelage.programs import viper
from tutelage.programs.types import ForbiddenSyntax, ParseFailure, ProgramFailure, Signature
from tutelage.programs.values import Box, Image

SIGNATURES = {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
    "MATCH": Signature({"image": "image", "options": "any"}, "text"),
    "DEPTH": Signature({"image": "image"}, "number"),
    "SCORE": Signature({"image": "image", "content": "text"}, "number"),
    "LLM": Signature({"question": "text", "long_answer": "bool"}, "text", frozenset({"long_answer"})),
}
PARSER = viper.Parser(SIGNATURES)


def picture(side: int) -> Image:
    return Image.from_array(np.full((3, 48, side), side, np.uint8))


STATES = {
    ("IMAGE",): {"IMAGE": picture(48)},
    ("LEFT", "RIGHT"): {"LEFT": picture(40), "RIGHT": picture(50)},
    ("VIDEO",): {"VIDEO": [picture(10), picture(20), picture(30)]},
    (): {"LEFT": picture(40), "RIGHT": picture(50)},
}


def reply(call: Any) -> Any:
    known = {"LOC": [Box(2, 2, 20, 20), Box(20, 5, 40, 40)], "VERIFY": True, "DEPTH": 2.5, "SCORE": 0.5, "LLM": "red"}
    return call.args["options"][0] if call.module == "MATCH" else known.get(call.module, "yes")


def run(text: str, state: dict[str, Any] | None = None) -> Any:
    program = PARSER.parse(text)
    steps, value = program.start({"query": "Q?", "possible_answers": ["red", "blue"], **(state or STATES[program.inputs])}), None
    try:
        while True:
            asked = steps.send(value)
            value = [reply(call) for call in asked] if isinstance(asked, list) else reply(asked)
    except StopIteration as stop:
        return stop.value


BODY = "    return ImagePatch(image).simple_query('What?')"
GOOD = f"def execute_command(image):\n{BODY}"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```python\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"```py\n{GOOD}",  # the closing fence was cut off
        f"Here is the program:\n\n```python\n{GOOD}\n```\n\nIt asks the image directly; it doesn't need find.",
        f"Sure! Let's ask directly.\n\n{GOOD}\n\nThis function asks the image directly.",
        f"def execute_command(image):\n{GOOD}",
        f"def execute_command(image) -> str:\n    {GOOD.replace(chr(10), chr(10) + '    ')}",
        f"def execute_command(image):\n```python\n{GOOD}\n```",
        BODY,
        BODY.strip(),
        f"```python\n{BODY}\n```",
        f"# What is it?\n{GOOD.replace('(image)', '(image)->str', 1)}",
        f"import math\nfrom typing import List\n\n{GOOD}\n\nprint(execute_command(image))",
        "from image_patch import ImagePatch\nfrom PIL import Image\nimage = Image.open('a.png').convert('RGB')\n"
        f"{GOOD}\nanswer = execute_command(image)",
        f"{GOOD}\n\nif __name__ == '__main__':\n    print(execute_command(None))",
        f"{GOOD}\n\n# Question: What next?\n# Program:\n",
        GOOD.replace("\n", "\r\n"),
        f"\ufeff{GOOD}",
        f"\n\n   \n{GOOD}\n\n\n",
        "\n".join("    " + line for line in GOOD.split("\n")),
        f"First:\n```python\nx = 1\n```\nthen:\n```python\n{GOOD}\n```",
    ],
)
def test_the_program_is_found(text: str) -> None:
    assert run(text) == "yes"


@pytest.mark.parametrize(
    ("head", "body", "answer"),
    [
        ("image", "ImagePatch(image).width", 48),
        ("image: Image.Image", "ImagePatch(image).width", 48),
        ("img", "ImagePatch(img).width", 48),
        ("picture_of_a_cat", "ImagePatch(picture_of_a_cat).width", 48),
        ("image, possible_answers, query", "query + possible_answers[1]", "Q?blue"),
        ("image, my_fig, time_wait_between_lines, syntax", "str(my_fig)", "None"),
        ("image, possible_answers, query, ImagePatch, VideoSegment, llm_query, distance", "ImagePatch(image).width", 48),
        ("image, threshold=0.5", "threshold", 0.5),
        ("image, *args, **kwargs", "len(args) + len(kwargs)", 0),
        ("image, *, query", "query", "Q?"),
        ("image_dict", "[ImagePatch(image_dict[side]).width for side in image_dict]", [40, 50]),
        ("image_list", "[ImagePatch(image).width for image in image_list]", [40, 50]),
        ("images", "len(images)", 2),
        ("left_image, right_image", "ImagePatch(right_image).width - ImagePatch(left_image).width", 10),
        ("image1, image2", "ImagePatch(image2).width", 50),
        ("video", "VideoSegment(video).num_frames", 3),
        ("video, possible_answers, query", "VideoSegment(video).frame_from_index(-1).width", 30),
        ("video, annotation, possible_answers, query", "annotation", None),
        ("video, question, choices, duration", "question + choices[0]", "Q?red"),
        ("", "ImagePatch(image).width", 48),
    ],
)
def test_every_signature_in_use_is_called(head: str, body: str, answer: Any) -> None:
    assert run(f"def execute_command({head}):\n    return {body}") == answer


def program(*lines: str) -> str:
    return "def execute_command(image):\n    p = ImagePatch(image)\n" + "\n".join("    " + line for line in lines)


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (["import math", "return math.sqrt(16)"], 4.0),
        (["import re", "return re.findall(r'[0-9]+', 'a12b3')"], ["12", "3"]),
        (["from typing import List, Dict, Optional", "xs: List[int] = [1]", "return xs"], [1]),
        (["import itertools", "return [list(pair) for pair in itertools.combinations([1, 2, 3], 2)]"], [[1, 2], [1, 3], [2, 3]]),
        (["from collections import Counter", "return Counter(['a', 'b', 'a']).most_common(1)[0][0]"], "a"),
        (["from collections import defaultdict", "d = defaultdict(list)", "d['a'].append(1)", "return d['a']"], [1]),
        (["from collections import OrderedDict", "return list(OrderedDict([('a', 1)]))"], ["a"]),
        (["import collections", "return collections.deque([1, 2]).popleft()"], 1),
        (["import numpy as np", "return np.mean([1, 2, 3]) + np.percentile([1, 2, 3, 4], 50)"], 4.5),
        (["from statistics import mode", "return mode(['a', 'b', 'b'])"], "b"),
        (["from functools import reduce", "return reduce(lambda a, b: a + b, [1, 2])"], 3),
        (["from operator import itemgetter", "return sorted([(2, 'a'), (1, 'b')], key=itemgetter(0))[0][1]"], "b"),
        (["from math import *", "return floor(2.5)"], 2),
        (["import random", "return random.random() == random.random()"], False),
        (["try:", "    return 1 / 0", "except ZeroDivisionError as error:", "    return str(error)"], "division by zero"),
        (["try:", "    return p.find('a')[7].left", "except Exception:", "    return 'none'"], "none"),
        (["try:", "    x = p.simple_query('a')", "finally:", "    y = 1", "return x"], "yes"),
        (["try:", "    x = p.simple_query('a')", "except:", "    x = 'lost'", "return x"], "yes"),
        (["assert p.width == 48, 'odd'", "return 'even'"], "even"),
        (["return next((q.left for q in p.find('a') if q.left > 0), None)"], 18),
        (["return next(filter(lambda q: q.left > 0, p.find('a'))).left"], 18),
        (["counts = {'a': 1, 'b': 3}", "return max(counts, key=counts.get)"], "b"),
        (["return sorted(['b', 'A'], key=str.lower)"], ["A", "b"]),
        (["return list(map(str.strip, [' a ']))"], ["a"]),
        (["d = {'a': 1, 'b': 2}", "del d['a']", "return list(d)"], ["b"]),
        (["patches = sorted(p.find('a'), key=lambda q: q.compute_depth())", "return len(patches)"], 2),
        (["pairs = ((i, q) for i, q in enumerate(p.find('a')))", "return [i for i, q in pairs]"], [0, 1]),
        (["total = 0", "for _ in range(3):", "    total += 1", "return total"], 3),
        (["_, second = p.find('a')", "return second.left"], 18),
        (["match p.width:", "    case 48:", "        return 'wide'", "    case _:", "        return 'other'"], "wide"),
        (["größe = p.width", "变量 = 2", "return größe * 变量"], 96),
        (["return f'{p.width:>5}|{p.find(\"a\")[0].left!r}'"], "   48|0"),
        (["return process_guesses('What?', ['a', 'b'])"], "red"),
        (["return best_image_match(list_patches=p.find('a'), content=['b', 'c']).left"], 0),
        (["return p.overlaps_with(p)"], True),
        (["return image.shape[1], image.width"], [48, 48]),
    ],
)
def test_what_models_write_runs(lines: list[str], answer: Any) -> None:
    assert run(program(*lines)) == answer


def test_small_classes_run_in_a_session_of_their_own() -> None:
    text = """
class Counter2(object):
    kind = 'n'

    def __init__(self, start=0):
        self.count = start
        self._seen = []

    def add(self, patch):
        self.count += 1
        self._seen.append(patch.simple_query('What?'))
        return self

    def __repr__(self):
        return f'{self.kind}{self.count}'

def execute_command(image):
    counter = Counter2()
    for patch in ImagePatch(image).find('a'):
        counter.add(patch)
    return str(counter) + counter._seen[0]
"""
    assert run(text) == "n2yes"
    data = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3\ndef execute_command(image):\n    return P().x"
    assert run(data) == 3
    assert PARSER.parse(text).body.private and PARSER.parse(data).body.private


def test_a_generator_under_any_stops_where_it_knows_enough() -> None:
    for line, calls in (
        ("return any(q.exists('b') for q in p.find('a'))", 3),  # find, and one find with one question for the first patch
        ("return all(not q.verify_property('a', 'b') for q in p.find('a'))", 2),
        ("return next(i for i, q in enumerate(p.find('a')) if q.verify_property('a', 'b'))", 2),
        ("return any(w == 'yes' for q in p.find('a') for w in [q.simple_query('x')] if w)", 2),
    ):
        steps, value, count = PARSER.parse(program(line)).start(STATES["IMAGE",]), None, 0
        with pytest.raises(StopIteration):
            while True:
                value = reply(steps.send(value))
                count += 1
        assert count == calls, line


def test_lines_of_failures_are_those_of_the_text() -> None:
    body = "    x = any(\n        len(p.find('a')) > 9\n        for p in [ImagePatch(image)]\n    )\n    return [][0]\n"
    text = f"Here it is:\n\n```python\n# a comment\ndef execute_command(image):\n{body}```\n"
    with pytest.raises(ProgramFailure) as caught:
        run(text)
    assert caught.value.where == "line 10"
    with pytest.raises(ProgramFailure) as caught:
        PARSER.parse(text.replace("[][0]", "missing"))
    assert caught.value.where == "line 10"
    with pytest.raises(ProgramFailure) as caught:
        run("x = 1\nreturn 1 / 0")
    assert caught.value.where == "line 2"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", ParseFailure),
        ("There is nothing to run here.", ParseFailure),
        ("```python\nx = 1\n```", ParseFailure),
        ("def other(image):\n    return 1", ParseFailure),
        (program("import os"), ForbiddenSyntax),
        (program("import subprocess as math"), ForbiddenSyntax),
        (program("from os import path"), ForbiddenSyntax),
        (program("ImagePatch.find = None"), ForbiddenSyntax),
        (program("p.left = 3"), ForbiddenSyntax),
        (program("yield 1"), ForbiddenSyntax),
        (program("with p: pass"), ForbiddenSyntax),
        ("class A:\n    @property\n    def x(self):\n        return 1\n" + GOOD, ForbiddenSyntax),
        ("class A(dict):\n    pass\n" + GOOD, ForbiddenSyntax),
        ("class A:\n    def f(self):\n        ImagePatch.find = None\n" + GOOD, ForbiddenSyntax),
    ],
)
def test_what_cannot_run_is_said_before_it_runs(text: str, kind: type[ProgramFailure]) -> None:
    with pytest.raises(kind) as caught:
        PARSER.parse(text)
    assert caught.value.remedy
