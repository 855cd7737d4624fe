"""Across frameworks: modules taught through the programs of one language, asked by the programs of the other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.sdvp.study.ablation_tables import AblationTables

NAMES = {"visprog": "VisProg", "viper": "ViperGPT"}
TRAINED = {"visprog": ("reference", "SDVP"), "viper": ("framework", "taught through ViperGPT")}
"""The cell whose modules were taught through each language."""


def framework_rows(tables: AblationTables) -> list[dict[str, Any]]:
    """A row for each language taught through and language asked in: changes against the frozen modules asked in the same,
    and failures by kind."""
    rows = []
    for taught, cell in TRAINED.items():
        if cell not in tables.cells:
            continue
        for asked in TRAINED:
            changes = {group: tables.change(cell, tables.frozen, tasks, asked) for group, tasks in tables.groups.items()}
            failed = Counter[str]()
            for part in tables.cells[cell]:
                failed.update(part["failures"].get(asked, {}))
            rows.append(
                {
                    "taught": taught,
                    "asked": asked,
                    "frozen": {group: tables.points(tables.frozen, group, asked) for group in tables.groups},
                    **{group: {"mean": x.mean, "lo": x.low, "hi": x.high} for group, x in changes.items()},
                    "tasks": {
                        task: {"mean": x.mean, "lo": x.low, "hi": x.high}
                        for task in tables.groups["current"]
                        for x in [tables.change(cell, tables.frozen, [task], asked)]
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
