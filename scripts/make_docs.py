"""Write docs/systems/NAME.md for each system, from its docstring, its options and its committed result; docs/tasks.md;
and the tables of the README, the index of systems, and the pages of results and of photographs.

``--check`` writes nothing and fails where a page is not what it would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import site_tables

from tutelage import experiments, registry
from tutelage.distillation.method import Method
from tutelage.distillation.settings import TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks.base import tasks
from tutelage.storage import read_json, write_text
from tutelage.systems import _published

ROOT = Path(__file__).parents[1]
PAGES, RESULTS = ROOT / "docs" / "systems", ROOT / "results" / "systems"


def page(entry: registry.SystemEntry) -> str:
    """The page of one system, as Markdown."""
    module = inspect.getmodule(entry.target)
    about = inspect.getdoc(module)
    own = inspect.getdoc(entry.target)
    source = Path(inspect.getsourcefile(entry.target)).relative_to(ROOT)
    parts = [
        f"# {entry.name}",
        f"Kind: {entry.kind}. Source: [`{source}`](../../{source}).",
        about,
        own if own != about else None,
        options(entry.target),
        training(entry.name),
        "## Run it",
        f"```sh\ntutelage show {entry.name}\n```" if entry.name in experiments.names() else None,
        try_it(entry),
        "## Result",
        result(RESULTS / f"{entry.name}.json"),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text)  # Sphinx roles mean nothing to Markdown


def try_it(entry: registry.SystemEntry) -> str:
    """Two lines of Python that run the system small."""
    if entry.is_tool:
        run = f'print(registry.find("{entry.name}").target.tiny_run(seed=0))  # its figures on a small input'
        return f"```python\nfrom tutelage import registry\n\n{run}\n```"
    run = f'train(registry.find("{entry.name}").target.tiny_job(seed=0))  # a training job of a few seconds'
    return f"```python\nfrom tutelage import registry\nfrom tutelage.distillation.trainer import train\n\n{run}\n```"


def tasks_page() -> str:
    """The page of tasks: what each reads and measures, and which method supports it."""
    known = tasks()
    found = {name: entry.target for name, entry in registry.systems().items()}
    methods = {"supervised": Supervised} | {name: kind for name, kind in found.items() if getattr(kind, "tasks", ())}
    own = [name for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Method) and not kind.tasks]
    parts = [
        "# Tasks",
        inspect.getdoc(inspect.getmodule(tasks)),
        "```python\nimport tutelage\n\n"
        'tutelage.distill(student, teacher, data, "kd", task="segmentation", task_options={"ignore_index": 0}, '
        "evaluate=test_data)\n```",
        'In a recipe: `task = "segmentation"`, and options under `[task_options]`.',
        "## Which method supports which task",
        "Each cell that says yes is tested: a step of training lowers the loss. Every other is refused by name. "
        f"These methods have losses of their own and read no task: {', '.join(f'`{name}`' for name in own)}.",
        "\n".join(
            [
                f"| task | {' | '.join(f'`{name}`' for name in methods)} |",
                "|---" * (len(methods) + 1) + "|",
                *(
                    f"| `{task}` | {' | '.join('yes' if task in kind.tasks else '–' for kind in methods.values())} |"
                    for task in known
                ),
            ]
        ),
    ]
    for name, kind in known.items():
        units = [f"{metric.name}{f' ({metric.unit})' if metric.unit else ''}" for metric in kind.metrics]
        parts += [f"## {name}", inspect.getdoc(kind), f"Reads: {kind.layout}.", f"Metrics: {', '.join(units)}."]
        table = options_table(kind)
        parts += [table] if table else []
    return re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", "\n\n".join(str(part) for part in parts) + "\n")


def options(target: Any) -> str | None:
    """A table of the fields of ``target.Config``."""
    table = options_table(getattr(target, "Config", None))
    return None if table is None else f"## Options\n\n{table}"


def options_table(config: Any) -> str | None:
    """The fields of a dataclass, one a row."""
    fields = dataclasses.fields(config) if config is not None and dataclasses.is_dataclass(config) else ()
    if not fields:
        return None
    rows = [f"| `{field.name}` | `{field.type}` | {default(field)} |" for field in fields]
    return "\n".join(["| option | type | default |", "|---|---|---|", *rows])


def default(field: dataclasses.Field[Any]) -> str:
    """A field's default, as it would be typed."""
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required"


def training(name: str) -> str | None:
    """The settings that the paper publishes, a row each."""
    known = _published.trainings(name)
    if not known:
        return None
    plain = TrainingSettings()
    rows = []
    for which, settings in known.items():
        given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        changed = [
            f"{key}={value!r}" for key, value in given.items() if key == "lr" or (value != getattr(plain, key) and key != "steps")
        ]
        rows.append(f"| `{name}:{which}` | `{', '.join(changed)}` |")
    example = (
        "```python\nfrom tutelage.systems import published_settings\n\n"
        f'settings = published_settings("{name}", batch_size=256, epochs=20)  # the rate is scaled with the batch\n```'
    )
    return "\n\n".join(["## Published training", example, "\n".join(["| name | settings |", "|---|---|", *rows])])


def result(file: Path) -> str:
    """The committed result as tables, with the command that made it."""
    if not file.exists():
        return "None is committed yet."
    found = read_json(file)
    tables = [line for part in (found, *found.get("further_metrics", ())) for line in ("", *arms_table(part))]
    claims = []
    for claim in found["claims"]:
        claims.append(f"- {claim['claim']}: {site_tables.interval(claim['difference'])}: **{claim['verdict']}**")
    return "\n".join(
        [
            f"**{found['verdict']}** by `{found['command']}`, {found['seconds']:.0f} s, {found['machine']}.",
            *tables,
            "",
            "Paired differences over seeds, good side up, with 95 % t-intervals:",
            "",
            *claims,
            "",
            f"Limits: {found['limits']}",
        ]
    )


def arms_table(part: dict[str, Any]) -> list[str]:
    """The lines of the table of one metric: a row an arm."""
    rows = [
        f"| {name} | {it['mean']:.4g} | {'' if it['sd'] is None else format(it['sd'], '.2g')} | {it['n']} |"
        for name, it in part["arms"].items()
    ]
    return [f"| arm | {part['metric']} | sd | seeds |", "|---|---|---|---|", *rows]


def main() -> None:
    """Write or check all pages."""
    pages = {PAGES / f"{entry.name}.md": page(entry) for entry in registry.systems().values()}
    pages[ROOT / "docs" / "tasks.md"] = tasks_page()
    filled = ("README.md", "docs/results.md", "docs/not-shown.md", "docs/photos.md", "docs/systems/index.md")
    for path in (ROOT / name for name in filled):
        pages[path] = site_tables.filled(path)
    pages[ROOT / "mkdocs.yml"] = site_tables.navigation(ROOT / "mkdocs.yml")
    if "--check" not in sys.argv[1:]:
        for path, text in pages.items():
            write_text(path, text)
        print(f"{len(pages)} pages in {PAGES.relative_to(ROOT)}")
        if old := site_tables.older_than_code():
            print(f"results older than their code: {', '.join(old)}; `tutelage show NAME` renews one")
        return
    old = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    orphans = sorted(set(PAGES.glob("*.md")) - set(pages))
    if old or orphans:
        names = ", ".join(path.stem for path in [*old, *orphans])
        sys.exit(f"docs out of date: {names}; run `make docs`, and delete pages of systems that are gone")


if __name__ == "__main__":
    main()
