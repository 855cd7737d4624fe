"""Language models that are asked for labels in context: a stub endpoint that answers by its nearest neighbour is that baseline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import InputError
from tutelage.programs.generators.completions import CompletionCache, Usage
from tutelage.programs.generators.openai_endpoint import Endpoint, EndpointSettings
from tutelage.systems.icl_discrete_functions import BASELINES, ask_language_model, examples_prompt, nearest, read_label

from ..programs.generators.stub_server import Asked, Reply, said, serving


def read_prompt(asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    text = asked.body["prompt"] if "prompt" in asked.body else asked.body["messages"][-1]["content"]
    xs = [[2.0 * int(bit) - 1 for bit in line.split()] for line in re.findall(r"Input: ([01 ]+)", text)]
    ys = [2.0 * int(bit) - 1 for bit in re.findall(r"Label: ([01])", text)]
    return np.array(xs), np.array(ys)


def neighbour_reply(asked: Asked, number: int) -> Reply:
    xs, ys = read_prompt(asked)
    found = nearest(xs[None], np.append(ys, 0.0)[None])[0, -1]
    return said("1" if found > 0 else "0")


@pytest.mark.parametrize("api", ["chat", "text"])
def test_an_endpoint_that_answers_by_its_nearest_neighbour_is_the_baseline(api: str, tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    with serving(neighbour_reply) as server:
        model = Endpoint(EndpointSettings(server.url, "stub", api=api))  # type: ignore[arg-type]
        usage, cache = Usage(), CompletionCache(tmp_path)
        options = {"size": 4, "counts": (3, 6), "functions": 12, "learners": {"1-NN": BASELINES["1-NN"]}}
        found = ask_language_model(model, "conjunction", **options, cache=cache, usage=usage)
        sent = len(server.asked)
        again = ask_language_model(model, "conjunction", **options, cache=cache, usage=usage)
        assert len(server.asked) == sent and usage.cached == sent
    assert found.curves[0].mean.tolist() == found.curves[1].mean.tolist() and found.guessed == 0 and found.asked == 24
    assert (found.predictions == again.predictions).all()


def test_answers_that_are_no_label_are_guessed_and_counted() -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    assert [read_label(one) for one in ("1", " 0.", "Label: 1\n", "10", "The label is 1", "")] == [1, -1, 1, None, None, None]
    with serving(lambda asked, number: said("maybe")) as server:
        model = Endpoint(EndpointSettings(server.url, "stub"))
        found = ask_language_model(model, "parity", size=4, counts=(4,), functions=40)
    assert found.guessed == 40 and found.failed == 0 and 20 < found.curves[0].mean[0] < 80
    with serving(lambda asked, number: Reply(json.dumps({"error": "no"}).encode(), 400)) as server:
        model = Endpoint(EndpointSettings(server.url, "stub", attempts=1))
        with pytest.raises(InputError, match="no answer came"):
            ask_language_model(model, "parity", size=4, counts=(4,), functions=2)
    with pytest.raises(InputError, match="counts"):
        ask_language_model(model, "parity", counts=())


def test_the_prompt_leaves_the_last_label_open() -> None:
    prompt = examples_prompt(np.array([[-1, 1], [1, 1]]), np.array([1]))
    assert prompt.text == "Input: 0 1\nLabel: 1\n\nInput: 1 1\nLabel:"
    assert prompt.messages[-1] == {"role": "user", "content": prompt.text}
