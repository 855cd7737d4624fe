from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tutelage.errors import InputError
from tutelage.reports.trace import trace_report

VIEW = {"image": "k", "region": [0, 0, 100, 80]}
CUT = {"image": "k", "region": [10, 20, 60, 70]}


def step(module: str, args: dict[str, Any], output: Any, **more: Any) -> dict[str, Any]:
    said = {"output_dist": None, "out_of_vocabulary": False, "ms": 1.25, "error": None, "module_version": "v1", "step": 0}
    return said | {"module": module, "args": args, "output": output} | more


def data() -> dict[str, Any]:
    steps = [
        step("LOC", {"image": VIEW, "object": "<b>cup</b>"}, [[10.0, 20.0, 30.0, 50.0, 0.8]], output_dist={"found": 0.8}),
        step("CROP", {"image": VIEW, "box": [[10.0, 20.0, 30.0, 50.0, 0.8]]}, CUT),
        step("LOC", {"image": CUT, "object": "spoon"}, [[1.0, 2.0, 5.0, 6.0, 0.5]]),
        step("MATCH", {"image": CUT, "options": ["a", "b"]}, "a", out_of_vocabulary=True, module_version="conse-uncalibrated-1"),
        step("VQA", {"image": CUT, "question": "Why?"}, None, error="cannot answer"),
    ]
    trace = {"status": "ok", "answer": "red", "error": None, "steps": steps, "out_of_vocabulary": 1}
    photo = {"key": "k", "width": 100, "height": 80, "src": "data:image/jpeg;base64,AAAA"}
    head = {"format": "tutelage-trace", "version": 1, "question": "What <i>is</i> it?", "models": "models: packaged"}
    return head | {"program": "A=LOC(image=IMAGE)", "images": [photo], "trace": trace}


def test_every_step_is_shown_with_its_view_boxes_and_answer() -> None:
    page = trace_report(data())
    assert page.count('class="step"') == 5 and ">red</b>" in page and "models: packaged" in page
    boxes = re.findall(r'<rect class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    assert boxes[0] == ("10.0", "20.0", "20.0", "30.0")
    assert boxes[-1] == ("11.0", "22.0", "4.0", "4.0")  # found inside a crop, drawn in the photo's pixels
    assert 'viewBox="10 20 50 50"' in page
    assert re.search(r'<rect class="cut" x="10" y="20" width="50" height="50"', page)
    assert "cannot answer" in page and "a guess" in page and "conse-uncalibrated-1" in page


def test_the_photo_is_in_the_page_once_and_nothing_is_loaded_or_run() -> None:
    page = trace_report(data())
    assert page.count("data:image/jpeg;base64,AAAA") == 1 and page.count('href="#photo-k"') == 6
    assert "<b>cup</b>" not in page and "&lt;b&gt;cup" in page and "<i>is</i>" not in page
    assert not re.search(r'(?:src|href)="https?:', page)


def test_a_program_that_failed_says_so() -> None:
    failed = data()
    failed["trace"] |= {"status": "runtime", "answer": None, "error": "no such class", "steps": []}
    page = trace_report(failed)
    assert "No answer" in page and "no such class" in page and "made no call" in page


@pytest.mark.parametrize("field", ["images", "trace", "question", "models", "program", "format"])
def test_a_missing_field_is_named(field: str) -> None:
    broken = copy.deepcopy(data())
    del broken[field]
    with pytest.raises(InputError, match=field):
        trace_report(broken)
