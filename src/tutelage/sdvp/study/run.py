"""Running the study: independent arms in separate processes, every finished part kept, so that a stopped run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage import environment, storage, workers
from tutelage.datasets.synthetic.scene import DOMAINS
from tutelage.sdvp import toy_modules
from tutelage.sdvp.study.arms import TRAINED_ARMS, ArmScores, run_baselines, run_training_arm, single_call_baselines
from tutelage.sdvp.study.samples import samples
from tutelage.sdvp.study.setup import SMOKE, STEPS_FACTOR, StudySizes, prepare
from tutelage.sdvp.study.tables import StudyTables

NETWORKS = ("LOC", "VQA", "VERIFY", "color", "loc", "easy")
BASELINES = "rivals"
PARTS: Mapping[str, tuple[str, ...]] = {"sdvp": ("sdvp",), BASELINES: ("naive",)}
"""The learning arms of each part; the rivals' part also holds the arms that need no teaching."""
Reporter = Callable[[str], None]


@dataclass(frozen=True)
class StudyPlan:
    """What to run: the seeds, how much of everything, for smoke tests networks that know nothing, and the language of the
    programs that modules are taught through and asked in."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sizes: StudySizes = StudySizes()
    quick: bool = False
    dsl: str = "visprog"

    @classmethod
    def smoke(cls, seed: int = 0, dsl: str = "visprog") -> StudyPlan:
        """The plumbing alone, in seconds: claims nothing."""
        return cls((seed,), SMOKE, True, dsl)

    @property
    def settings_hash(self) -> str:
        """Names everything that was settled before the reported seeds were run: world, sizes, lessons, networks."""
        return storage.fingerprint(
            dict(DOMAINS),
            self.sizes,
            self.quick,
            self.dsl,
            toy_modules.TOY_TRAINING,
            {a: str(o) for a, o in TRAINED_ARMS.items()},
            dict(STEPS_FACTOR),
        )


def module_store() -> storage.ContentStore:
    """Where trained toy modules are kept."""
    return storage.ContentStore(storage.cache_home() / "modules")


def train_network(root: str, seed: int, name: str, quick: bool) -> None:
    """Train one toy network of a seed, unless it is in the store."""
    file = Path(root) / "parts" / f"seed-{seed}-network-{name}.json"
    if not file.exists():
        started = time.process_time()
        toy_modules.load_or_train(seed, name, module_store(), quick)
        storage.write_json(file, {"cpu_seconds": time.process_time() - started})


def run_part(root: str, plan: StudyPlan, seed: int, name: str) -> None:
    """One part of one seed, written to the run folder: SDVP, or all its rivals."""
    file = Path(root) / "parts" / f"seed-{seed}-{name}.json"
    if file.exists():
        return
    started = time.process_time()
    setting = prepare(seed, plan.sizes, module_store(), plan.quick, (plan.dsl,))
    scores = ArmScores(seed, plan.sizes, plan.dsl)
    part: dict[str, Any] = {"seed": seed, "arms": {}}
    if name == BASELINES:
        part["arms"] = run_baselines(setting, scores)
        part["questions"] = scores.units
    for arm in PARTS[name]:
        options = replace(TRAINED_ARMS[arm], dsl=plan.dsl)
        if plan.quick:
            options = replace(options, settings=replace(options.settings, steps=3, warmup=1))
        folder = Path(root) / "lessons" / f"seed-{seed}-{arm}"
        part["arms"][arm], modules = run_training_arm(arm, setting, scores, folder, plan.sizes.stage_report, options=options)
        if arm == "sdvp":
            part["arms"] |= single_call_baselines(setting, scores, modules)
        if arm == "sdvp" and seed == plan.seeds[0]:
            part["samples"] = samples(setting, scores, modules)
    part["cpu_seconds"] = time.process_time() - started
    storage.write_json(file, part)


def run_study(
    plan: StudyPlan,
    root: str | Path,
    processes: int = 2,
    report: Reporter | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what is not yet there and write ``study.json``; the same call on the same folder goes on where it stopped.

    Raises:
        StaleError: the folder holds a run of other settings or of another version.
    """
    folder = storage.RunFolder(root, {"plan": plan, "settings_hash": plan.settings_hash})
    arms = [(str(folder.root), plan, seed, name) for seed in plan.seeds for name in PARTS]
    run_tasks(folder.root, plan.seeds, plan.quick, run_part, arms, "running the arms", processes, report, on_progress)
    return assemble(plan, folder.root)


def run_tasks(
    root: Path,
    seeds: Sequence[int],
    quick: bool,
    function: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    words: str,
    processes: int,
    report: Reporter | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train the networks of ``seeds``, then run ``function`` on ``tasks``, in worker processes; each keeps what it finished
    in ``root``. ``spent.json`` there holds the seconds and the peak memory (MiB) of this and earlier calls."""
    start = time.monotonic()
    clock = root / "spent.json"
    spent = storage.read_json(clock) if clock.exists() else {"seconds": 0.0, "peak_rss_mib": 0.0}
    networks = [(str(root), seed, name, quick) for seed in seeds for name in NETWORKS]
    total, finished = len(networks) + len(tasks), 0
    with environment.PeakMemory() as memory:
        for work, part, title in ((train_network, networks, "training networks"), (function, tasks, words)):
            if report:
                report(title)
            for _ in workers.map_tasks(work, part, processes):
                finished += 1
                if on_progress:
                    on_progress(finished, total)
                now = {
                    "seconds": spent["seconds"] + time.monotonic() - start,
                    "peak_rss_mib": max(spent["peak_rss_mib"], memory.mib),
                }
                storage.write_json(clock, now)


def assemble(plan: StudyPlan, root: Path) -> dict[str, Any]:
    """The parts of all seeds as one result, written to ``study.json``."""
    spent = storage.read_json(root / "spent.json")
    parts, shown, cpu = [], [], 0.0
    for seed in plan.seeds:
        found = [storage.read_json(root / "parts" / f"seed-{seed}-{name}.json") for name in (BASELINES, "sdvp")]
        arms = {name: result for part in found for name, result in part["arms"].items()}
        parts.append({"seed": seed, "questions": found[0]["questions"], "arms": arms})
        shown += [sample for part in found for sample in part.get("samples", [])]
        networks = [storage.read_json(root / "parts" / f"seed-{seed}-network-{name}.json") for name in NETWORKS]
        cpu += sum(part["cpu_seconds"] for part in (*found, *networks))
    tables = StudyTables(parts)
    summary = tables.summary() | {"seeds": len(plan.seeds), **spent}
    summary["verdicts"] = tables.verdicts(summary) if not plan.quick else []
    result = {
        "format": "tutelage-study",
        "version": 1,
        **environment.run_metadata(plan.seeds),
        "settings_hash": plan.settings_hash,
        "dsl": plan.dsl,
        **spent,
        "cpu_seconds": cpu,
        "smoke": plan.quick,
        "summary": summary,
        "tables": tables.all(),
        "samples": shown,
    }
    storage.write_json(root / "study.json", result)
    return result


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """``count`` seeds from ``first``."""
    return tuple(range(first, first + count))
