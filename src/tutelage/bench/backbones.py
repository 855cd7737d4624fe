"""Backbones side by side: images per second and peak memory, against the same network of another library where one has it.

All ways of one size run in one process with one thread and take turns; a figure is the median over rounds, a ratio the
median of the rounds' own ratios, so that what else the machine does falls on both sides. Inference, fp32, random images.
timm is installed beside the project, never into it: it wants a torchvision, which has no CPU build for every torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tutelage import registry, storage
from tutelage.bench import _isolated_packages
from tutelage.environment import run_metadata
from tutelage.errors import InputError, did_you_mean

TUTELAGE, FOLDED, COMPILED = "ours", "ours, folded", ", compiled"
LIMIT = 1.15
"""No backbone may take longer than this times its reference."""

TIMM = "1.0.22"
MIB = 2**20


def backbones() -> dict[str, Any]:
    """The network classes of all registered backbones, by system, those with published sizes."""
    from tutelage.systems._backbone import Backbone

    found = {name: getattr(entry.target, "Network", entry.target) for name, entry in registry.systems().items()}
    return {name: net for name, net in found.items() if isinstance(net, type) and issubclass(net, Backbone) and net.VARIANTS}


def resolve_systems(systems: Sequence[str], smoke: bool = False) -> list[str]:
    """``system:size`` of what to measure. A bare system stands for its first size, nothing for all systems; in a smoke
    test the smallest size that is made for small images.

    Raises:
        InputError: no such backbone or size.
    """
    known, names = backbones(), []
    for text in systems or list(known):
        system, _, size = text.partition(":")
        if system not in known:
            raise InputError(f"no backbone {system!r}", where="systems", remedy=did_you_mean(system, list(known)))
        if size:
            known[system].options(size)
        sizes = known[system].VARIANTS
        if smoke and not systems and min(it.size for it in sizes.values()) > 32:
            continue
        names.append(f"{system}:{size or (min(sizes, key=lambda it: sizes[it].size) if smoke else next(iter(sizes)))}")
    return names


def run(
    systems: Sequence[str] = (),
    *,
    rounds: int = 7,
    batch: int = 4,
    device: str = "cpu",
    compiled: bool = False,
    smoke: bool = False,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """The whole result: ``{rows, ratios, verdicts, left_out, …}`` and the stamp of the environment.

    A row: ``{system, size, variant, images_per_s, ms, peak_tensor_mib, parameters, macs, side, difference}``; ``difference`` is
    the largest one of the way's logits from ours with the same weights, relative to the largest logit; null where the
    weights are others. ``peak_tensor_mib`` counts what a forward pass allocates, not the weights.

    Raises:
        InputError: no such backbone, fewer than one round or image, a device that is not there; or the timed process of the
            only network failed (of several it is left out, with its last words).
    """
    import torch

    if rounds < 1 or batch < 1:
        raise InputError("nothing to measure", where="--rounds, --batch", remedy="7 rounds, 4 images")
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"torch finds no {device} here", where="--device", remedy="--device cpu")
    began = time.perf_counter()
    names = resolve_systems(systems, smoke)
    left_out: dict[str, str] = {}
    packages = None if smoke else _timm(left_out)
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        progress(number, len(names))
        try:
            found = _measure_in_process(name, rounds, batch, device, compiled, packages)
        except InputError as error:
            if len(names) == 1:
                raise
            left_out[name] = error.message  # the others' figures stand
            continue
        left_out |= {f"{name}, {way}": reason for way, reason in found["left_out"].items()}
        rows += [row(name, way, it, found["about"], batch) for way, it in found["ways"].items()]
        ratios += compare_variants(name, found["ways"])
    progress(len(names), len(names))
    return {
        "rows": rows,
        "ratios": ratios,
        "verdicts": verdicts(ratios),
        "left_out": left_out,
        "clock": "CPU time, one thread" if device == "cpu" else "wall time, device awaited",
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "rounds": rounds,
        "batch": batch,
        "smoke": smoke,
        "seconds": time.perf_counter() - began,
        **run_metadata([0]),
    }


def row(name: str, variant: str, measured: Mapping[str, Any], about: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """One row of the result."""
    system, _, size = name.partition(":")
    ms = median(measured["ms"])
    speed = {"images_per_s": 1000 * batch / ms, "ms": ms, "peak_tensor_mib": measured["peak"] / MIB}
    return {"system": system, "size": size, "way": variant, **speed, **about, "difference": measured.get("difference")}


def compare_variants(name: str, variants: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ours against each other library, both eager or both compiled; and the folded form against the trained one.

    ``{system, size, variant, than, time_ratio}``: the way's time over the other's, the median of the rounds' ratios.
    """
    system, _, size = name.partition(":")
    pairs = []
    for mode in ("", COMPILED):
        others = [way for way in variants if way.endswith(COMPILED) == bool(mode) and not way.startswith(TUTELAGE)]
        pairs += [(TUTELAGE + mode, other) for other in others] + [(FOLDED + mode, TUTELAGE + mode)]
    return [
        {"system": system, "size": size, "way": way, "than": than,
         "time_ratio": median(a / b for a, b in zip(variants[way]["ms"], variants[than]["ms"]))}
        for way, than in pairs if way in variants and than in variants
    ]  # fmt: skip


def verdicts(ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each eager comparison with another library: whether ours takes at most :data:`LIMIT` times its time."""
    return [
        {
            "claim": f"{it['system']}:{it['size']} over {it['than']}, time",
            "value": it["time_ratio"],
            "target": f"at most {LIMIT}",
            "met": it["time_ratio"] <= LIMIT,
        }
        for it in ratios
        if it["way"] == TUTELAGE
    ]


def _timm(left_out: dict[str, str]) -> Path | None:
    """Where timm lies, once it is installed; None, with the reason noted, where it cannot be used."""
    from importlib.util import find_spec

    if find_spec("huggingface_hub") is None:
        left_out["timm"] = "needs huggingface_hub, which the extra 'hf' brings"
        return None
    folder, reason = _isolated_packages.install(f"timm-{TIMM}", [f"timm=={TIMM}", _isolated_packages.torchvision(), "pyyaml>=6.0"])
    if folder is None:
        left_out["timm"] = reason
    return folder


def _measure_in_process(name: str, rounds: int, batch: int, device: str, compiled: bool, packages: Path | None) -> Any:
    """:func:`measure_one` in a process of its own, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        words = [str(out), name, "--rounds", str(rounds), "--batch", str(batch), "--device", device]
        words += (["--compiled"] if compiled else []) + (["--packages", str(packages)] if packages is not None else [])
        threads = {word: "1" for word in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-m", "tutelage.bench.backbones", *words],
            env=os.environ | threads, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise InputError(f"the timed process failed: {last[0][:300]}", where=name)
        return storage.read_json(out)


# -- the timed process -----------------------------------------------------------------------------------------------


def networks(name: str, device: str, left_out: dict[str, str]) -> Iterator[tuple[str, Any, str]]:
    """Every eager way of ``name``: (way, network in eval mode, the library whose weights all share or "")."""
    from tutelage.systems._backbone import create
    from tutelage.systems._toy import build_with_seed

    network = build_with_seed(lambda: create(name), 0, "bench", name).to(device).eval()
    system, _, size = name.partition(":")
    for library, build in type(network).references(size).items():
        try:
            other = build_with_seed(lambda build=build: build(1000), 0, "bench", library).to(device).eval()
        except ImportError as error:
            left_out[library] = f"cannot be imported: {error}"
            continue
        if library in network.KEY_PATTERNS:
            network.load_converted(other.state_dict(), library)
        yield library, other, library if library in network.KEY_PATTERNS else ""
    yield TUTELAGE, network, ""
    if hasattr(network, "folded"):
        yield FOLDED, network.folded(), TUTELAGE


def measure_one(name: str, rounds: int, batch: int, device: str, compiled: bool) -> dict[str, Any]:
    """``{variants: {variant: {ms, peak, difference}}, about: {parameters, macs, side}, left_out}`` of one ``system:size``."""
    import torch

    from tutelage.bench.distill_steps import StepVariant, measure
    from tutelage.distillation.outputs import forward_heads
    from tutelage.seeds import torch_rng
    from tutelage.systems._backbone import count_macs, count_parameters

    left_out: dict[str, str] = {}
    made = {way: (network, shared) for way, network, shared in networks(name, device, left_out)}
    tutelage_network = made[TUTELAGE][0]
    side = tutelage_network.VARIANTS[name.partition(":")[2]].size
    images = tutelage_network.example(batch, side, torch_rng(0, "bench", "images")).to(device)
    ways, differences = {}, {}
    # the last library that shares weights has lent its own to ours
    lender = next((way for way in reversed(made) if made[way][1] == way), None)
    with torch.inference_mode():
        tutelage_logits = forward_heads(tutelage_network, images)["logits"]
        for way, (network, shared) in made.items():
            if way == lender or shared == TUTELAGE:
                other_logits = forward_heads(network, images)["logits"]
                differences[way] = ((other_logits - tutelage_logits).abs().max() / tutelage_logits.abs().max()).item()
            ways[way] = StepVariant(lambda network=network: network(images), ())
            if compiled:
                quick = torch.compile(network)
                try:
                    quick(images)
                except Exception as error:  # compilers fail in many ways; the eager figures stand
                    left_out[way + COMPILED] = f"{type(error).__name__}: {str(error)[:200]}"
                    continue
                ways[way + COMPILED] = StepVariant(lambda quick=quick: quick(images), ())
        found = measure(ways, rounds, 1, device)
    for way, difference in differences.items():
        found[way]["difference"] = difference
    shape = tuple(images.shape[2:])
    about = {
        "parameters": count_parameters(tutelage_network),
        "macs": count_macs(tutelage_network, shape, tutelage_network.in_chans),
        "side": side,
    }
    return {"ways": found, "about": about, "left_out": left_out}


def main() -> None:
    """``python -m tutelage.bench.backbones OUT SYSTEM:SIZE --rounds 7 …``: writes what :func:`measure_one` gives."""
    import torch

    from tutelage.bench.distill_steps import importable

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--packages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with importable(options.packages):
        storage.write_json(options.out, measure_one(options.name, options.rounds, options.batch, options.device, options.compiled))


if __name__ == "__main__":
    main()
