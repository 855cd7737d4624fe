"""Write docs/systems/NAME.md for each system, from its docstring, its options and its committed result.

``--check`` writes nothing and fails where a page is not what it would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from tutelage import experiments, registry
from tutelage.storage import read_json, write_text

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
        "## Run it",
        f"```sh\ntutelage show {entry.name}\n```" if entry.name in experiments.names() else None,
        f"```python\nfrom tutelage import registry\nfrom tutelage.distillation.trainer import train\n\n"
        f'train(registry.find("{entry.name}").target.tiny_job(seed=0))  # a training job of a few seconds\n```',
        "## Result",
        result(RESULTS / f"{entry.name}.json"),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text)  # Sphinx roles mean nothing to Markdown


def options(target: Any) -> str | None:
    """A table of the fields of ``target.Config``."""
    config = getattr(target, "Config", None)
    fields = dataclasses.fields(config) if config is not None and dataclasses.is_dataclass(config) else ()
    if not fields:
        return None
    rows = [f"| `{field.name}` | `{field.type}` | {default(field)} |" for field in fields]
    return "\n".join(["## Options", "", "| option | type | default |", "|---|---|---|", *rows]).replace("\n\n\n", "\n\n")


def default(field: dataclasses.Field[Any]) -> str:
    """A field's default, as it would be typed."""
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required"


def result(file: Path) -> str:
    """The committed result as tables, with the command that made it."""
    if not file.exists():
        return "None is committed yet."
    found = read_json(file)
    arms = [
        f"| {name} | {it['mean']:.4g} | {'' if it['sd'] is None else format(it['sd'], '.2g')} | {it['n']} |"
        for name, it in found["arms"].items()
    ]
    claims = []
    for claim in found["claims"]:
        difference = claim["difference"]
        bounds = "" if difference["lo"] is None else f" [{difference['lo']:+.3g}, {difference['hi']:+.3g}]"
        claims.append(f"- {claim['claim']}: {difference['mean']:+.3g}{bounds}: **{claim['verdict']}**")
    return "\n".join(
        [
            f"**{found['verdict']}** by `{found['command']}`, {found['seconds']:.0f} s, {found['machine']}.",
            "",
            f"| arm | {found['metric']} | sd | seeds |",
            "|---|---|---|---|",
            *arms,
            "",
            "Paired differences over seeds, good side up, with 95 % t-intervals:",
            "",
            *claims,
            "",
            f"Limits: {found['limits']}",
        ]
    )


def main() -> None:
    """Write or check all pages."""
    pages = {PAGES / f"{entry.name}.md": page(entry) for entry in registry.systems().values()}
    if "--check" not in sys.argv[1:]:
        for path, text in pages.items():
            write_text(path, text)
        print(f"{len(pages)} pages in {PAGES.relative_to(ROOT)}")
        return
    old = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    orphans = sorted(set(PAGES.glob("*.md")) - set(pages))
    if old or orphans:
        names = ", ".join(path.stem for path in [*old, *orphans])
        sys.exit(f"docs out of date: {names}; run `make docs`, and delete pages of systems that are gone")


if __name__ == "__main__":
    main()
