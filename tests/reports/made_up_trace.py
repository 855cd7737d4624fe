"""A made-up trace of five steps: found, cut out, found in the crop, guessed, refused."""

from __future__ import annotations

from typing import Any

VIEW = {"image": "k", "region": [0, 0, 100, 80]}
PIXELS = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAoAAAAICAIAAABPmPnhAAAAFElEQVR4nGOMqohiwA2Y8MgNaWkAKQ8BPFCifp8AAAAASUVORK5CYII="
)
CUT = {"image": "k", "region": [10, 20, 60, 70]}


def step(module: str, args: dict[str, Any], output: Any, **more: Any) -> dict[str, Any]:
    said = {"output_dist": None, "out_of_vocabulary": False, "ms": 1.25, "error": None, "module_version": "v1", "step": 0}
    return said | {"module": module, "args": args, "output": output} | more


def trace() -> dict[str, Any]:
    steps = [
        step("LOC", {"image": VIEW, "object": "<b>cup</b>"}, [[10.0, 20.0, 30.0, 50.0, 0.8]], output_dist={"found": 0.8}),
        step("CROP", {"image": VIEW, "box": [[10.0, 20.0, 30.0, 50.0, 0.8]]}, CUT),
        step("LOC", {"image": CUT, "object": "spoon"}, [[1.0, 2.0, 5.0, 6.0, 0.5]]),
        step("MATCH", {"image": CUT, "options": ["a", "b"]}, "a", out_of_vocabulary=True, module_version="conse-uncalibrated-1"),
        step("VQA", {"image": CUT, "question": "Why?"}, None, error="cannot answer"),
    ]
    run = {"status": "ok", "answer": "red", "error": None, "steps": steps, "out_of_vocabulary": 1}
    photo = {"key": "k", "width": 100, "height": 80, "src": PIXELS}
    head = {"format": "tutelage-trace", "version": 1, "question": "What <i>is</i> it?", "models": "models: packaged"}
    return head | {"program": "A=LOC(image=IMAGE)", "images": [photo], "trace": run}
