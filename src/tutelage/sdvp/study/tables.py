"""From the arms of all seeds to the tables and the summary: points, paired differences, intervals resampled by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.datasets.confidence_intervals import cluster_draws, interval_of, mean_sd
from tutelage.distillation.continual import continual_figures
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.setup import STAGES

Part = Mapping[str, Any]
"""One seed: ``{"seed", "questions": {task: {"images", "types"}}, "arms": {arm: …}}``."""

ARMS = ("frozen", "replaced", "routed", "naive", "sdvp")
EASY_VQA_BASELINES = ("prior", "single call", "single call, taught")
"""What stands beside easy-VQA's rows: see :func:`tutelage.sdvp.study.arms.single_call_baselines`."""
LEAST_GAIN, LEAST_GAP_CLOSED = 18.5, 0.92
GAP = 3.0
"""Tasks whose teachers are less than this many points ahead of the frozen modules do not count in ``gap_closed``."""
DRAWS = 2000


class StudyTables:
    """The tables of a study."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        self.tasks = [
            t for t in (*study_questions.CURRENT, *study_questions.PREVIOUS, *study_questions.UNSEEN) if t in parts[0]["questions"]
        ]

    def points(self, arm: str, task: str) -> np.ndarray | None:
        """Accuracy of each seed, in points; None where the arm has no figure for the task."""
        if any(task not in part["arms"].get(arm, {}).get("right", {}) for part in self.parts):
            return None
        return np.array([100 * np.mean(part["arms"][arm]["right"][task]) for part in self.parts])

    def cell(self, arm: str, task: str) -> dict[str, float] | None:
        """mean and sd over seeds."""
        found = self.points(arm, task)
        return None if found is None else _cell(found)

    def differences(self, task: str, arm: str = "sdvp", against: str = "frozen") -> np.ndarray:
        """The paired difference on each question of all seeds, in points."""
        both = [[np.array(part["arms"][name]["right"][task], float) for name in (arm, against)] for part in self.parts]
        return np.concatenate([100 * (after - before) for after, before in both])

    def mean_difference(self, task: str, arm: str = "sdvp", against: str = "frozen") -> float:
        """The mean of :meth:`differences`."""
        return float(self.differences(task, arm, against).mean())

    def draws(self, task: str, arm: str = "sdvp", against: str = "frozen") -> tuple[float, np.ndarray]:
        """The mean paired difference in points, and its bootstrap draws; clusters are the images of each seed."""
        found = self.differences(task, arm, against)
        clusters = [(part["seed"], image) for part in self.parts for image in part["questions"][task]["images"]]
        return float(found.mean()), cluster_draws(found, clusters, seed=0, draws=DRAWS)

    def group(self, name: str) -> list[str]:
        """The tasks of one group."""
        return [task for task in self.tasks if study_questions.group_of(task) == name]

    def change(self, group: str, arm: str) -> float:
        """Mean over the group's tasks of the change against the frozen modules, in points."""
        return float(np.mean([self.mean_difference(task, arm) for task in self.group(group)]))

    def arms(self) -> list[dict[str, Any]]:
        """One row a task; ``teacher`` is the replaced arm where every call is the teachers' to answer."""
        rows = []
        for task in self.tasks:
            mean, draws = self.draws(task)
            interval = interval_of(mean, draws, len(self.parts))
            cells = {arm: self.cell(arm, task) for arm in (*ARMS, "gold")}
            cells["teacher"] = cells["replaced"] if task in STAGES else None
            count = sum(len(part["questions"][task]["images"]) for part in self.parts)
            gain = {"mean": mean, "lo": interval.low, "hi": interval.high}
            rows.append({"task": task, "group": study_questions.group_of(task), "n": count, "cells": cells, "gain": gain})
        return rows

    def types(self) -> list[dict[str, Any]]:
        """Current tasks by question type, and easy-VQA as a whole; beside it what needs no program."""
        rows = []
        for task in self.group("current"):
            kinds = sorted({kind for part in self.parts for kind in part["questions"][task]["types"]})
            arms = [arm for arm in (*ARMS, *EASY_VQA_BASELINES) if self.points(arm, task) is not None]
            for kind in (*kinds, "all") if task == study_questions.EASY else kinds:
                cells, count = {}, 0
                for arm in arms:
                    found = []
                    for part in self.parts:
                        mask = np.array([kind in (k, "all") for k in part["questions"][task]["types"]])
                        found.append(100 * float(np.mean(np.array(part["arms"][arm]["right"][task])[mask])))
                        count += int(mask.sum()) if arm == ARMS[0] else 0
                    cells[arm] = _cell(np.array(found))
                rows.append({"task": task, "type": kind, "n": count, "cells": cells})
        return rows

    def matrix(self) -> dict[str, Any]:
        """``R[i][j]``: accuracy on task j after stage i, in points, mean over seeds."""
        out: dict[str, Any] = {"stages": ["start", *STAGES], "tasks": self.tasks}
        start = [float(np.mean(found)) if (found := self.points("frozen", task)) is not None else None for task in self.tasks]
        for arm in ("sdvp", "naive"):
            middle = [
                [100 * float(np.mean([part["arms"][arm]["matrix"][i][task] for part in self.parts])) for task in self.tasks]
                for i in range(len(STAGES) - 1)
            ]
            last = [float(np.mean(self.points(arm, task))) for task in self.tasks]  # type: ignore[arg-type]
            out[arm] = [start, *middle, last]
        return out

    def continual(self) -> dict[str, dict[str, float | None]]:
        """Average accuracy, backward transfer and forgetting over the taught tasks (:mod:`tutelage.distillation.continual`: the
        last task can neither transfer backward nor be forgotten), and the change on unseen ones."""
        matrix, out = self.matrix(), {}
        column = {task: j for j, task in enumerate(self.tasks)}
        for arm in ("sdvp", "naive"):
            rows = np.array(matrix[arm], float)
            learned = continual_figures(rows[1:, [column[task] for task in STAGES]])
            unseen = [column[task] for task in self.group("unseen")]
            out[arm] = {
                "average": learned["average"],
                "bwt": learned["backward_transfer"],
                "forgetting": learned["forgetting"],
                "unseen_delta": float(np.mean(rows[-1, unseen] - rows[0, unseen])),
            }
        return out

    def modules(self) -> list[dict[str, Any]]:
        """Each module by itself, on labelled calls of the selection split."""
        rows = []
        for name, metrics in self.parts[0]["arms"]["frozen"]["modules"].items():
            for metric in metrics:
                cells = {
                    arm: _cell(np.array([part["arms"][arm]["modules"][name][metric] for part in self.parts]))
                    for arm in ("frozen", "naive", "sdvp", "teacher")
                }
                rows.append({"module": name, "metric": metric, "cells": cells})
        return rows

    def health(self) -> list[dict[str, Any]]:
        """How the runs went, by arm: mean shares, and how many programs failed in all, by kind."""
        keys = self.parts[0]["arms"]["frozen"]["health"]
        rows = []
        for arm in ARMS:
            failed = Counter[str]()
            for part in self.parts:
                failed.update(part["arms"][arm]["failures"])
            shares = {key: float(np.mean([part["arms"][arm]["health"][key] for part in self.parts])) for key in keys}
            rows.append({"arm": arm, **shares, "failures": dict(failed)})
        return rows

    def lessons(self) -> list[dict[str, Any]]:
        """What became of each module in each stage of SDVP, a row a seed."""
        rows = []
        for part in self.parts:
            for report in part["arms"]["sdvp"]["lessons"]:
                verdict = report["verdict"]
                guarded = {1.0: "kept whole", 0.0: "rolled back"}.get(report["share"], f"kept {report['share']:.0%}")
                rows.append(
                    {
                        "seed": part["seed"],
                        "stage": report["stage"],
                        "module": report["module"],
                        "teacher": report["teacher"],
                        "accepted": verdict["accepted"],
                        "teacher_score": _points(verdict["teacher"]),
                        "student_score": _points(verdict["student"]),
                        "records": report["records"],
                        "kept": report["kept"],
                        "guard": guarded if verdict["accepted"] else "not taught",
                    }
                )
        return rows

    def all(self) -> dict[str, Any]:
        """Every table by name."""
        names = ("arms", "types", "matrix", "continual", "modules", "health", "lessons")
        return {name: getattr(self, name)() for name in names}

    def summary(self) -> dict[str, Any]:
        """The key figures, in points; ``gap_closed`` is a share."""
        current = self.group("current")
        means, draws = zip(*(self.draws(task) for task in current), strict=True)
        interval = interval_of(float(np.mean(means)), np.mean(draws, axis=0), len(self.parts))
        gaps = {task: self.mean_difference(task, "replaced") for task in current}
        counted = [task for task in current if gaps[task] >= GAP]
        gained = sum(self.mean_difference(task) for task in counted)
        return {
            "current_gain": interval.mean,
            "current_gain_ci95": [interval.low, interval.high],
            "gap_closed": gained / sum(gaps[task] for task in counted) if counted else None,
            "previous_change": self.change("previous", "sdvp"),
            "unseen_change": self.change("unseen", "sdvp"),
            "naive_forgetting": -self.change("previous", "naive"),
            "replaced_unseen_change": self.change("unseen", "replaced"),
        }

    def verdicts(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What was promised and what came of it, misses included."""
        found = []

        def claim(text: str, target: str, value: str, met: bool, reason: str = "") -> None:
            found.append({"claim": text, "target": target, "value": value, "met": bool(met), "reason": reason})

        for row in self.arms():
            if row["group"] == "current":
                gain = row["gain"]
                value = f"{gain['mean']:+.1f} [{gain['lo']:+.1f}, {gain['hi']:+.1f}]"
                claim(f"{row['task']} gains", "95 % interval above 0", value, gain["lo"] > 0)
        gain, gap = summary["current_gain"], summary["gap_closed"]
        claim("Mean gain on current tasks", f"at least +{LEAST_GAIN} points", f"{gain:+.1f}", gain >= LEAST_GAIN)
        shown = "–" if gap is None else f"{gap:.3f}"
        claim("Share of the gap to the teachers closed", f"at least {LEAST_GAP_CLOSED}", shown, (gap or 0) >= LEAST_GAP_CLOSED)
        behind_teacher = self.mean_difference(study_questions.EASY, "replaced", "sdvp")
        claim("easy_vqa near its specialist", "at most 2 points behind", f"{behind_teacher:+.1f} behind", behind_teacher <= 2)
        for group in ("previous", "unseen"):
            change, drops = summary[f"{group}_change"], self._drops(group)
            worst = min(self.group(group), key=self.mean_difference)
            value = f"mean {change:+.1f}, worst {worst} {self.mean_difference(worst):+.1f}"
            claim(f"Every {group} task kept", "none more than 1 point down", value, not drops, drops)
        forgotten = summary["naive_forgetting"]
        claim("Naive tuning forgets", "at least 10 points", f"{forgotten:.1f}", forgotten >= 10)
        ahead = {task: self.mean_difference(task, "sdvp", "routed") for task in self.group("current")}
        behind = ", ".join(f"{task} {change:+.1f}" for task, change in ahead.items() if change < 0)
        mean = float(np.mean(list(ahead.values())))
        reason = f"behind on {behind}: there the teacher itself answers, at every call" if behind else ""
        claim("Level with routing to confident teachers", "at least 0 points apart", f"{mean:+.1f}", mean >= 0, reason)
        return found

    def _drops(self, group: str) -> str:
        drops = {task: self.mean_difference(task) for task in self.group(group)}
        named = ", ".join(f"{task} {drop:+.1f}" for task, drop in sorted(drops.items(), key=lambda item: item[1]) if drop < -1)
        return f"single drops of more than a point: {named}" if named else ""


def _cell(values: np.ndarray) -> dict[str, float]:
    found = mean_sd(values)
    return {"mean": found.mean, "sd": found.sd}


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share
