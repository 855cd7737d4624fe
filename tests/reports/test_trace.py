from __future__ import annotations

import copy
import re

import made_up_trace
import pytest
from made_up_trace import trace

from tutelage.errors import InputError
from tutelage.reports.trace import trace_report


def test_every_step_is_shown_with_its_view_boxes_and_answer() -> None:
    page = trace_report(trace())
    assert page.count('class="step"') == 5 and ">red</b>" in page and "models: packaged" in page
    boxes = re.findall(r'<rect class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    assert boxes[0] == ("10.0", "20.0", "20.0", "30.0")
    assert boxes[-1] == ("11.0", "22.0", "4.0", "4.0")  # found inside a crop, drawn in the photo's pixels
    assert 'viewBox="10 20 50 50"' in page
    assert re.search(r'<rect class="cut" x="10" y="20" width="50" height="50"', page)
    assert "cannot answer" in page and "a guess" in page and "conse-uncalibrated-1" in page


def test_the_photo_is_in_the_page_once_and_nothing_is_loaded_or_run() -> None:
    page = trace_report(trace())
    assert page.count(made_up_trace.PIXELS) == 1 and page.count('href="#photo-k"') == 6
    assert "<b>cup</b>" not in page and "&lt;b&gt;cup" in page and "<i>is</i>" not in page
    assert not re.search(r'(?:src|href)="https?:', page)


def test_a_program_that_failed_says_so() -> None:
    failed = trace()
    failed["trace"] |= {"status": "runtime", "answer": None, "error": "no such class", "steps": []}
    page = trace_report(failed)
    assert "No answer" in page and "no such class" in page and "made no call" in page


@pytest.mark.parametrize("field", ["images", "trace", "question", "models", "program", "format"])
def test_a_missing_field_is_named(field: str) -> None:
    broken = copy.deepcopy(trace())
    del broken[field]
    with pytest.raises(InputError, match=field):
        trace_report(broken)
