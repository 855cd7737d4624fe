"""The server of the load test, a process of its own: ``python -m tutelage.bench.serving_process stub 0 0 '{"queue": 8}'``."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.bench.serving import STUB_ITEM_MS, STUB_MS
from tutelage.environment import tune_garbage_collector
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import grammar_generator
from tutelage.programs.types import Call, Module, ModuleOutputs, Signature, Value
from tutelage.programs.values import Box
from tutelage.serving.app import application
from tutelage.serving.server import serve
from tutelage.serving.settings import ServerSettings


@dataclass(frozen=True)
class StubModule:
    """A module of an accelerator's shape: so long a call, so long an item, one answer to everything."""

    name: str
    signature: Signature
    value: Value
    version: str = "stub"
    symbolic: bool = False
    batch_size: int = 64

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Sleep, as one waits for an accelerator, and answer."""
        time.sleep((STUB_MS + STUB_ITEM_MS * len(calls)) / 1000)
        return ModuleOutputs([self.value] * len(calls))


def stubs() -> dict[str, Module]:
    """LOC finds one box, VQA sees red, VERIFY agrees."""
    found: list[Module] = [
        StubModule("LOC", Signature({"image": "image", "object": "text"}, "boxes"), [Box(4, 4, 24, 24, 0.9)]),
        StubModule("VQA", Signature({"image": "image", "question": "text"}, "text"), "red"),
        StubModule("VERIFY", Signature({"image": "image", "object": "text", "property": "text"}, "bool"), True),
    ]
    return {module.name: module for module in found}


def toy_modules(seed: int, quick: bool) -> dict[str, Module]:
    """The toy modules, on one thread."""
    import torch

    from tutelage import storage
    from tutelage.sdvp.toy_modules import generalists

    torch.set_num_threads(1)
    return dict(generalists(seed, storage.ContentStore(storage.cache_home() / "modules"), quick))


def main() -> None:
    """Serve until told to stop; the first line of standard output is the address."""
    kind, seed, quick, settings = sys.argv[1:]
    tune_garbage_collector()
    networks = stubs() if kind == "stub" else toy_modules(int(seed), quick == "1")
    limits = ServerSettings(**json.loads(settings))
    app = application({**symbolic_modules(), **networks}, grammar_generator(), limits)
    gc.freeze()
    serve(app, limits, "127.0.0.1", 0, lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
