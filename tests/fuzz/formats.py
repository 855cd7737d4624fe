"""Formats of files that the project reads: how a small one is made, and what reads it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from tutelage import reading, storage
from tutelage.cli.run import _jobs
from tutelage.datasets import gqa, nlvr2
from tutelage.datasets.easy_vqa import _read as read_easy_vqa
from tutelage.datasets.sampling import SampledIds, Subset
from tutelage.distillation.cache import Cache
from tutelage.distillation.cache_build import build
from tutelage.distillation.checkpoint import read_tensors, truncate_log, write_tensors
from tutelage.distillation.data import TensorData
from tutelage.distillation.export import load_weights, save_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.recipe import DataSpec, read_recipe
from tutelage.distillation.resolve import load_data
from tutelage.distillation.supervised import Supervised
from tutelage.modules.loading import load as load_module
from tutelage.modules.pretrained.tfjs_graph import read_graph
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Vqa
from tutelage.programs.generators.completions import Completion, CompletionCache, CompletionRequest
from tutelage.programs.generators.few_shot import Prompt
from tutelage.programs.generators.from_file import read_programs
from tutelage.programs.result_cache import CachedResult, ResultCache
from tutelage.programs.run_context import RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.trace import RecordOrigin, StepRecord
from tutelage.programs.values import Box, Image
from tutelage.reports import render_report
from tutelage.reports.trace import trace_report
from tutelage.sdvp import collect
from tutelage.systems.quantized_distillation import packing

from ..reports import made_up_comparison, made_up_results, made_up_trace


@dataclasses.dataclass(frozen=True)
class Format:
    """``make`` writes a sound file into a folder and gives its path; ``read`` reads it, or what is beside it, in full.
    ``resealed``: the digest in it is made right again after each change, so that what the digest guards is tested too."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    resealed: bool = False


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def data(name: str, value: Any) -> Callable[[Path], Path]:
    return text(name, json.dumps(value))


def picture(format: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"a.{format.lower()}", format)
        return folder / f"a.{format.lower()}"

    return make


PROGRAM = "A=LIST(query='red,blue',max=2)\nB=EVAL(expr=\"{A} == 'red' or 1 + 2 > 1\")\nFINAL_RESULT=RESULT(var=B)"
ROW = {"id": "1", "dsl": "visprog", "program": PROGRAM, "images": {"IMAGE": "a.png"}, "question": "What?", "answer": "red"}
RECIPE = """method = "kd"
seeds = 3
[student]
model = "small-cnn"
options = { classes = 10 }
[teacher]
model = "small-cnn"
[data]
file = "data.npz"
[options]
tau = 4.0
[settings]
steps = 20
milestones = [0.5, 0.75]
[views]
crop = 2
[cache]
folder = "c"
store = "fp16"
"""


def batch(folder: Path) -> Path:
    picture("PNG")(folder)
    return data("batch.jsonl", ROW)(folder)


def run_batch(file: Path) -> None:
    modules = dict(symbolic_modules())
    for trace in stream(_jobs(file, file.parent, modules, lambda name: None, Counter()), RunContext(modules)):
        trace.to_json()


def records(folder: Path) -> Path:
    image = Image.from_array(np.zeros((3, 6, 5), np.uint8))
    args = {"image": image.crop(0, 0, 3, 3), "object": "cube", "boxes": [Box(0, 1, 2, 3, 0.5)]}
    found = [StepRecord(RecordOrigin("q", "t", "s", "visprog", "h"), 0, 0, "LOC", "1", args, [Box(1, 2, 3, 4)], {"found": 0.5})]
    collect.save_records({"LOC": found}, folder)
    return folder / "LOC.jsonl"


def read_records(file: Path) -> None:
    for found in collect.load_records(file.parent).values():
        for record in found:
            assert record.input_hash and record.to_json()


def cache(folder: Path) -> Path:
    samples = TensorData(torch.arange(48.0).reshape(12, 4), torch.arange(12) % 3)
    lesson = TrainingJob(nn.Linear(4, 3), nn.Linear(4, 3), Supervised(), samples, TrainingSettings(steps=2, batch_size=4), "fuzz")
    build(lesson, folder)
    return folder / "cache.json"


def shard(folder: Path) -> Path:
    cache(folder)
    return folder / "shard-000000.safetensors"


VOCABULARY = Vocabulary((("color", ("red", "green")), ("yes/no", ("yes", "no"))), ("object", "cube"))


def module(folder: Path) -> Path:
    return Vqa.build(FiLMConfig(VOCABULARY, width=4, pixels=16), 0).save(folder) / "config.json"


def module_weights(folder: Path) -> Path:
    return module(folder).with_name("weights.safetensors")


def checkpoint(folder: Path) -> Path:
    return write_tensors(folder / "a.safetensors", {"student.w": torch.ones(3)}, {"step": 1, "since": 0, "seconds": 1.0})


def weights(folder: Path) -> Path:
    return save_weights(nn.Linear(3, 2), folder / "w.safetensors")


def arrays(folder: Path) -> Path:
    np.savez(folder / "data.npz", inputs=np.ones((4, 1, 2, 2), np.float32), labels=np.arange(4) % 3)
    return folder / "data.npz"


def packed(folder: Path) -> Path:
    (folder / "p.bin").write_bytes(packing.pack({"a": torch.ones(3, 2), "b": torch.arange(4)}, {}, False))
    return folder / "p.bin"


def results(folder: Path) -> Path:
    with ResultCache(folder / "r.sqlite") as kept:
        kept.put(symbolic_modules()["LIST"], "key", CachedResult(["red"], {"red": 1.0}))
    return folder / "r.sqlite"


def read_results(file: Path) -> None:
    with ResultCache(file) as kept:
        kept.get(symbolic_modules()["LIST"], "key")
        kept.put(symbolic_modules()["LIST"], "other", CachedResult("red"))


def run_folder(folder: Path) -> Path:
    storage.RunFolder(folder, {"a": 1})
    return folder / "run.json"


def sample(folder: Path) -> Path:
    return SampledIds({"seed": 1}, {"a": Subset("train", "balanced", ("1", "2"))}).save(folder / "s.json")


ASKED = ({"model": "m"}, CompletionRequest(Prompt("rules", ("turn",)), 0.0, 0))


def responses(folder: Path) -> Path:
    CompletionCache(folder).put(*ASKED, Completion("A=RESULT(var=1)", "stop", 0.5))
    return next(folder.rglob("*.json"))


def graph(folder: Path) -> Path:
    node = [{"name": "x", "op": "Placeholder"}, {"name": "y", "op": "Relu", "input": ["x"]}]
    weights = [{"weights": [{"name": "w", "shape": [1], "dtype": "float32"}]}]
    model = {"format": "graph-model", "modelTopology": {"node": node}, "weightsManifest": weights}
    return data("model.json", model | {"signature": {"outputs": {"y": {}}}})(folder)


def study(folder: Path) -> Path:
    return data("study.json", made_up_results.study(1))(folder)


def comparison(folder: Path) -> Path:
    return data("comparison.json", made_up_comparison.comparison())(folder)


def trace_page(file: Path) -> str:
    return trace_report(reading.read_json(file))


GQA_QUESTION = {
    "imageId": "n1",
    "question": "What color?",
    "answer": "red",
    "fullAnswer": "Red.",
    "isBalanced": True,
    "groups": {"global": "color", "local": "c"},
    "entailed": ["1"],
    "equivalent": ["1"],
    "types": {"structural": "query", "semantic": "attr", "detailed": "attrC"},
    "annotations": {"question": {"4": "7"}, "answer": {}, "fullAnswer": {"1": "7"}},
    "semantic": [{"operation": "select", "argument": "fork (8)", "dependencies": []}],
    "semanticStr": "select: fork (8)",
}
BOWL = {"name": "bowl", "x": 1, "y": 2, "w": 3, "h": 4, "attributes": ["red"], "relations": [{"name": "on", "object": "7"}]}
NLVR2 = {"identifier": "dev-850-0-0", "sentence": "A star.", "label": "True", "left_url": "http://l", "right_url": "http://r"}


FORMATS = MappingProxyType(
    {
        "batch": Format(batch, run_batch),
        "programs": Format(data("p.jsonl", ROW), lambda file: list(read_programs(file))),
        "recipe": Format(text("r.toml", RECIPE), read_recipe),
        "png": Format(picture("PNG"), Image.from_file),
        "jpeg": Format(picture("JPEG"), Image.from_file),
        "gif": Format(picture("GIF"), Image.from_file),
        "bmp": Format(picture("BMP"), Image.from_file),
        "tiff": Format(picture("TIFF"), Image.from_file),
        "webp": Format(picture("WEBP"), Image.from_file),
        "ppm": Format(picture("PPM"), Image.from_file),
        "checkpoint": Format(checkpoint, read_tensors),
        "checkpoint, resealed": Format(checkpoint, read_tensors, resealed=True),
        "weights": Format(weights, lambda file: load_weights(nn.Linear(3, 2), file)),
        "cache": Format(cache, lambda file: Cache(file.parent).info()),
        "cache, resealed": Format(cache, lambda file: Cache(file.parent).info(), resealed=True),
        "shard": Format(shard, lambda file: Cache(file.parent).info()),
        "shard, resealed": Format(shard, lambda file: Cache(file.parent).info(), resealed=True),
        "module": Format(module, lambda file: load_module(file.parent)),
        "module, resealed": Format(module, lambda file: load_module(file.parent), resealed=True),
        "module's weights": Format(module_weights, lambda file: load_module(file.parent)),
        "records": Format(records, read_records),
        "log": Format(text("log.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2}\n'), lambda file: truncate_log(file, 5)),
        "arrays": Format(arrays, lambda file: load_data(DataSpec(file=str(file)))),
        "packed weights": Format(packed, lambda file: packing.unpack(file.read_bytes())),
        "results": Format(results, read_results),
        "responses": Format(responses, lambda file: CompletionCache(file.parent.parent).get(*ASKED)),
        "graph": Format(graph, lambda file: read_graph(file.read_bytes(), b"\0\0\0\0")),
        "study": Format(study, lambda file: render_report(file)),
        "comparison": Format(comparison, lambda file: render_report(file)),
        "trace": Format(data("t.json", made_up_trace.trace()), trace_page),
        "run folder": Format(run_folder, lambda file: storage.RunFolder(file.parent, {"a": 1})),
        "sample": Format(sample, SampledIds.load),
        "gqa questions": Format(data("q.json", {"1": GQA_QUESTION}), lambda file: list(gqa.read_questions(file))),
        "scene graphs": Format(
            data("g.json", {"n1": {"width": 64, "height": 48, "objects": {"7": BOWL}}}),
            lambda file: list(gqa.read_scene_graphs(file)),
        ),
        "nlvr2": Format(data("n.json", NLVR2), lambda file: list(nlvr2.read_examples(file))),
        "easy-vqa": Format(
            data("questions.json", [["what color?", "red", 1]]), lambda file: read_easy_vqa.__wrapped__("train", file.parent)
        ),
    }
)
