"""Tables of the README and of the site that are made from the registry and from committed results."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

from tutelage import registry
from tutelage.experiments import count_shown
from tutelage.storage import read_json

ROOT = Path(__file__).parents[1]
TASK_NAMES = {
    "easy_vqa": "easy-VQA (published benchmark)",
    "b_gqa": "GQA-style questions (synthetic)",
    "b_nlvr": "NLVR2-style statements (synthetic)",
    "a_color": "colours, domain A (synthetic)",
    "a_shape": "shapes, domain A (synthetic)",
    "a_pattern": "patterns, domain A (synthetic)",
    "a_size": "sizes, domain A (synthetic)",
    "a_count": "counting, domain A (synthetic)",
    "a_exist": "existence, domain A (synthetic)",
    "b_pattern": "patterns, domain B (synthetic)",
    "b_size": "sizes, domain B (synthetic)",
    "b_spatial": "spatial relations, domain B (synthetic)",
    "b_digit": "digits on signs, domain B (synthetic)",
    "b_grounding": "grounding, domain B (synthetic)",
    "c_mixed": "mixed questions, domain C (synthetic)",
}
ARMS = ("frozen", "replaced", "routed", "naive", "sdvp", "teacher")
PAPER = re.compile(r"\(([^()]*?\b(?:19|20)\d\d\b)(?:,? \(?arXiv (\d{4}\.\d{5}))?[^()]*\)")


def paper(entry: registry.SystemEntry) -> str:
    """Authors and year of the system's paper, with a link where its docstrings name an arXiv number."""
    module = inspect.getmodule(entry.target)
    assert module is not None
    package = importlib.import_module(".".join(module.__name__.split(".")[:3]))
    for text in (inspect.getdoc(package), inspect.getdoc(module), inspect.getdoc(entry.target)):
        found = PAPER.search(" ".join((text or "").split()))
        if found:
            authors = found[1].split(", ")
            short = authors[0] if "et al." in authors[0] or len(authors) == 2 else f"{authors[0]} et al."
            name = f"{short}, {found[1][-4:]}"
            return f"[{name}](https://arxiv.org/abs/{found[2]})" if found[2] else name
    raise ValueError(f"no docstring of {entry.name} names its paper as (Authors, year, arXiv number)")


def methods(pages: str) -> str:
    """All systems: name, kind, paper and verdict; ``pages`` is the path of the folder of their pages."""
    rows = []
    for entry in registry.systems().values():
        file = ROOT / "results" / "systems" / f"{entry.name}.json"
        verdict = claims_shown(read_json(file)) if file.exists() else "no result yet"
        rows.append(f"| [{entry.name}]({pages}{entry.name}.md) | {entry.kind} | {paper(entry)} | {verdict} |")
    return "\n".join(["| system | kind | paper | its experiment |", "|---|---|---|---|", *rows])


def claims_shown(result: dict[str, Any]) -> str:
    """How many of the claims of a committed result were shown: "shown (all 3 claims)" or "2 of 3 claims"."""
    shown, total = count_shown(result)
    if shown == total:
        return "shown (1 claim)" if total == 1 else f"shown (all {total} claims)"
    return f"{shown} of {total} claims shown"


def not_shown() -> str:
    """Every claim of a committed result that was not shown, with its difference and what the experiment's limits are."""
    parts = []
    for name in registry.systems():
        file = ROOT / "results" / "systems" / f"{name}.json"
        found = read_json(file) if file.exists() else {"claims": []}
        missed = [claim for claim in found["claims"] if claim["verdict"] != "shown"]
        if not missed:
            continue
        rows = [f"- {claim['claim']}: {interval(claim['difference'])}" for claim in missed]
        shown = claims_shown(found)
        parts.append(
            f"## {name}\n\n{shown} ([page](systems/{name}.md)). Not shown:\n\n" + "\n".join(rows) + f"\n\n{found['limits']}"
        )
    return "\n\n".join(parts)


def interval(difference: dict[str, Any]) -> str:
    """A paired difference with its 95 % interval."""
    bounds = "" if difference["lo"] is None else f" [{difference['lo']:+.3g}, {difference['hi']:+.3g}]"
    return f"{difference['mean']:+.3g}{bounds}"


def older_than_code() -> list[str]:
    """The systems whose committed result is older than the last change of their own files; by the dates of git."""
    found = []
    for name in registry.systems():
        module = name.replace("-", "_")
        result = _changed(f"results/systems/{name}.json")
        system = f"src/tutelage/systems/{module}"
        code = _changed(system if (ROOT / system).is_dir() else f"{system}.py", f"src/tutelage/experiments/{module}.py")
        if result and code > result:
            found.append(name)
    return found


def _changed(*paths: str) -> int:
    """When one of the paths was last changed in git, in seconds; 0 where git knows none."""
    done = subprocess.run(["git", "log", "-1", "--format=%ct", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0)


def study_groups() -> str:
    """The study: the mean accuracy of each group of tasks."""
    rows = []
    arms = read_json(ROOT / "results" / "sdvp-study.json")["tables"]["arms"]
    for group in ("current", "previous", "unseen"):
        members = [row for row in arms if row["group"] == group]
        cells = [
            f"{sum(row['cells'][arm]['mean'] for row in members) / len(members):.1f}"
            for arm in ARMS[:-1]  # teachers know the current tasks alone
        ]
        gain = sum(row["gain"]["mean"] for row in members) / len(members)
        rows.append(f"| {group} ({len(members)}) | {' | '.join(cells)} | {gain:+.1f} |")
    return "\n".join([f"| tasks | {' | '.join(ARMS[:-1])} | gain by SDVP |", "|---" * 7 + "|", *rows])


def study() -> str:
    """The study, task by task, and its verdicts."""
    found = read_json(ROOT / "results" / "sdvp-study.json")
    rows = [_task_row(row) for row in found["tables"]["arms"]]
    verdicts = [
        f"| {_readable(item['claim'])} | {item['target']} | {item['value']} | {'reached' if item['met'] else 'not reached'} | "
        f"{_readable(item['reason'])} |"
        for item in found["summary"]["verdicts"]
    ]
    return "\n".join(
        [
            f"By `{found['command']}` in {found['seconds']:.0f} s on {found['cores']} cores: {found['machine']}.",
            "",
            f"| group | task | {' | '.join(ARMS)} | gain by SDVP [95 %] |",
            "|---" * (len(ARMS) + 3) + "|",
            *rows,
            "",
            "| claim | target | value | verdict | note |",
            "|---|---|---|---|---|",
            *verdicts,
        ]
    )


def photo_study(claims: bool = True) -> str:
    """SDVP on photographs: every arm by every metric; with ``claims``, the paired differences behind the verdict."""
    file = ROOT / "results" / "systems" / "sdvp-photos.json"
    if not file.exists():
        return "None is committed yet: `tutelage show sdvp-photos`."
    found = read_json(file)
    metrics = [found, *found["further_metrics"]]
    rows = []
    for arm in found["arms"]:
        cells = [part["arms"].get(arm) for part in metrics]
        rows.append(f"| {arm} | {' | '.join('–' if it is None else _mean_sd(it) for it in cells)} |")
    heads = " | ".join(part["metric"].removesuffix(", %") for part in metrics)
    lines = [f"| CATEGORY, % | {heads} |", "|---" * (len(metrics) + 1) + "|", *rows]
    if claims:
        lines += ["", "Paired differences over seeds in points, with 95 % t-intervals:", ""]
        lines += [f"- {it['claim']}: {interval(it['difference'])}: **{it['verdict']}**" for it in found["claims"]]
        lines += [
            "",
            f"By `{found['command']}`, {found['cpu_seconds']:.0f} CPU seconds for {len(found['seeds'])} seeds: {found['machine']}. "
            f"Limits: {found['limits']}",
        ]
    return "\n".join(lines)


def _mean_sd(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.1f}" + ("" if not cell["sd"] else f" ± {cell['sd']:.1f}")


def _task_row(row: dict[str, Any]) -> str:
    cells = [format(row["cells"][arm]["mean"], ".1f") if row["cells"][arm] else "–" for arm in ARMS]
    gain = row["gain"]
    bounds = f"{gain['mean']:+.1f} [{gain['lo']:+.1f}, {gain['hi']:+.1f}]"
    return f"| {row['group']} | {TASK_NAMES[row['task']]} | {' | '.join(cells)} | {bounds} |"


def _readable(text: str) -> str:
    """The text with tasks by the names that readers know."""
    return re.sub(r"\b(?:easy_vqa|[abc]_[a-z]+)\b", lambda match: TASK_NAMES.get(match[0], match[0]), text)


def navigation(path: Path) -> str:
    """The text of ``mkdocs.yml`` with a page of the navigation for each system."""
    pages = "".join(f"      - systems/{name}.md\n" for name in sorted(registry.systems()))
    text = path.read_text(encoding="utf-8")
    return re.sub(r"(      - systems/index\.md\n)(?:      - systems/[a-z0-9-]+\.md\n)*", rf"\g<1>{pages}", text)


def filled(path: Path) -> str:
    """The text of a file, with what stands between ``<!-- NAME -->`` and ``<!-- end -->`` renewed."""
    made = {
        "methods": lambda: methods("docs/systems/"),
        "methods-page": lambda: methods(""),
        "not-shown": not_shown,
        "photo-study": photo_study,
        "photo-figures": lambda: photo_study(claims=False),
        "study": study,
        "study-groups": study_groups,
    }

    def renewed(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{made[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- ([a-z-]+) -->\n(?:(?!<!--).)*<!-- end -->", renewed, path.read_text(encoding="utf-8"), flags=re.DOTALL)
