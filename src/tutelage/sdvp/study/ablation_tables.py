"""The ablations' tables: changes against the frozen modules and against SDVP as it is, paired, resampled by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.datasets.confidence_intervals import Interval, cluster_draws, interval_of
from tutelage.sdvp.study.noise import ARMS, noise_verdicts
from tutelage.sdvp.study.noise import GROUPS as NOISE_GROUPS

Part = Mapping[str, Any]
"""One cell of one seed."""
GROUPS = ("current", "previous", "unseen")
DRAWS = 2000


class AblationTables:
    """The tables of ``cells``: one list a cell, in it one part a seed; the first cell is frozen, the second SDVP."""

    def __init__(self, cells: Sequence[Sequence[Part]], group_of: Callable[[str], str]):
        self.cells = {(found[0]["axis"], found[0]["name"]): found for found in cells if "right" in found[0]}
        self.noise = [part["noise"] for found in cells for part in found if "noise" in part]
        self.frozen, self.full = list(self.cells)[:2]
        self.images: list[Mapping[str, list[str]]] = [part["images"] for part in self.cells[self.frozen]]
        self.groups = {name: [task for task in self.images[0] if group_of(task) == name] for name in GROUPS}

    def right(self, cell: tuple[str, str], task: str, dsl: str = "visprog") -> list[np.ndarray]:
        """1 or 0 for each question of the task, an array a seed."""
        return [np.array(list(part["right"][dsl][task])).astype(float) for part in self.cells[cell]]

    def points(self, cell: tuple[str, str], group: str, dsl: str = "visprog") -> float:
        """Accuracy in points, the mean over the group's tasks."""
        return float(np.mean([100 * np.concatenate(self.right(cell, task, dsl)).mean() for task in self.groups[group]]))

    def change(
        self, cell: tuple[str, str], against: tuple[str, str], tasks: Sequence[str], dsl: str = "visprog", base: str | None = None
    ) -> Interval:
        """The mean paired difference over ``tasks``, in points, ``against`` run in the language ``base`` (None: the same);
        whole images of each seed are resampled, each task by itself."""
        means, draws = [], []
        for number, task in enumerate(tasks):
            pairs = zip(self.right(cell, task, dsl), self.right(against, task, base or dsl), strict=True)
            difference = 100 * np.concatenate([after - before for after, before in pairs])
            clusters = [(seed, image) for seed, images in enumerate(self.images) for image in images[task]]
            means.append(difference.mean())
            draws.append(cluster_draws(difference, clusters, seed=number, draws=DRAWS))
        return interval_of(float(np.mean(means)), np.mean(draws, axis=0), len(self.images))

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell: ``gain`` and ``kept`` against the frozen modules; ``against`` SDVP with a verdict; failures."""
        found = []
        for cell, parts in self.cells.items():
            groups = {}
            for group, tasks in self.groups.items():
                gain = self.change(cell, self.frozen, tasks)
                against = self.change(cell, self.full, tasks)
                groups[group] = {
                    "accuracy": self.points(cell, group),
                    "change": _plain(gain),
                    "against_sdvp": _plain(against),
                    "verdict": verdict(against) if cell not in (self.frozen, self.full) else "",
                    "tasks": {task: self.change(cell, self.frozen, [task]).mean for task in tasks},
                }
            found.append(
                {
                    "axis": cell[0],
                    "name": cell[1],
                    **groups,
                    "kept": float(np.mean([sum(one["kept"] for one in part["lessons"]) for part in parts])),
                    "refused_teachers": float(np.mean([sum(not x["verdict"]["accepted"] for x in p["lessons"]) for p in parts])),
                    "failures": failures(parts),
                    "cpu_seconds": float(np.mean([part["cpu_seconds"] for part in parts])),
                }
            )
        return found

    def noise_rows(self) -> list[dict[str, Any]]:
        """Gains in points by arm, mean over seeds, in each of the noise study's groups."""
        if not self.noise:
            return []
        rows = []
        for arm in ARMS:
            gains = {where: float(np.mean([one[where][arm] for one in self.noise])) for where in NOISE_GROUPS}
            failed = Counter[str]()
            for one in self.noise:
                failed.update(one["failures"].get(arm, {}))
            rows.append({"arm": arm, **gains, "failures": dict(failed)})
        return rows

    def all(self) -> dict[str, Any]:
        """Every table by name."""
        return {"cells": self.rows(), "frameworks": framework_rows(self), "noise": self.noise_rows()}

    def verdicts(self) -> list[dict[str, Any]]:
        """What was promised and what came of it, misses included; claims whose cells were not run are left out."""
        found = []
        alone, added = ("final labels", "alone"), ("final labels", "added to SDVP")
        if alone in self.cells and added in self.cells:
            tasks = self.groups["current"]
            better = max((self.full, alone), key=lambda cell: self.points(cell, "current"))
            ahead = self.change(added, better, tasks)
            found.append(
                {
                    "claim": "SDVP with final labels is at least level with the better of the two alone",
                    "target": "at least 0 points apart on current tasks",
                    "value": str(ahead),
                    "met": ahead.mean >= 0,
                    "reason": "" if ahead.mean >= 0 else f"the better one is {better[1]}",
                }
            )
        found += framework_verdicts(self)
        return found + (noise_verdicts(self.noise) if self.noise else [])


def verdict(against: Interval) -> str:
    """What a paired interval shows."""
    return "better" if against.low > 0 else "worse" if against.high < 0 else "no difference shown"


def failures(parts: Sequence[Part], dsl: str = "visprog") -> dict[str, int]:
    """Programs that failed, by kind, over all seeds."""
    found = Counter[str]()
    for part in parts:
        found.update(part["failures"].get(dsl, {}))
    return dict(found)


def _plain(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "lo": found.low, "hi": found.high}


# -- modules taught through the programs of one language, asked by those of the other --

NAMES = {"visprog": "VisProg", "viper": "ViperGPT"}
TRAINED = {"visprog": ("reference", "SDVP"), "viper": ("framework", "taught through ViperGPT")}
"""The cell whose modules were taught through each language."""


def framework_rows(tables: AblationTables) -> list[dict[str, Any]]:
    """A row for each language taught through and language asked in: changes against the frozen modules asked in the same,
    and failures by kind."""
    rows = []
    for trained_with, cell in TRAINED.items():
        if cell not in tables.cells:
            continue
        for asked_with in TRAINED:
            changes = {group: tables.change(cell, tables.frozen, tasks, asked_with) for group, tasks in tables.groups.items()}
            failed = Counter[str]()
            for part in tables.cells[cell]:
                failed.update(part["failures"].get(asked_with, {}))
            rows.append(
                {
                    "taught": trained_with,
                    "asked": asked_with,
                    "frozen": {group: tables.points(tables.frozen, group, asked_with) for group in tables.groups},
                    **{group: {"mean": x.mean, "lo": x.low, "hi": x.high} for group, x in changes.items()},
                    "tasks": {
                        task: {"mean": x.mean, "lo": x.low, "hi": x.high}
                        for task in tables.groups["current"]
                        for x in [tables.change(cell, tables.frozen, [task], asked_with)]
                    },
                    "failures": dict(failed),
                }
            )
    return rows


def framework_verdicts(tables: AblationTables) -> list[dict[str, Any]]:
    """For each pair of languages: every current task gains, by 4 points in the mean, and old and unseen tasks are kept."""
    found = []
    for row in framework_rows(tables):
        words = f"taught through {NAMES[row['taught']]}, asked in {NAMES[row['asked']]}"
        weak = [task for task, gain in row["tasks"].items() if gain["lo"] <= 0]
        gain = row["current"]
        claims: list[tuple[str, str, str, bool, str]] = [
            (
                f"Current tasks gain, {words}",
                "each interval above 0, mean at least +4 points",
                f"{gain['mean']:+.1f} [{gain['lo']:+.1f}, {gain['hi']:+.1f}]",
                not weak and gain["mean"] >= 4,
                f"not shown for {', '.join(weak)}" if weak else "",
            )
        ]
        for group in ("previous", "unseen"):
            change = row[group]["mean"]
            claims.append((f"{group.capitalize()} tasks kept, {words}", "at most 1 point down", f"{change:+.1f}", change >= -1, ""))
        found += [dict(zip(("claim", "target", "value", "met", "reason"), one, strict=True)) for one in claims]
    return found
