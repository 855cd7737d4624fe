"""From a finished run to a folder as the Hugging Face hub keeps models: weights, settings, and a card written from the run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage import environment, storage
from tutelage.errors import InputError, did_you_mean
from tutelage.modules.hf.base import HfModule
from tutelage.modules.loading import load
from tutelage.modules.visual_module import METADATA_FILE, VisualModule
from tutelage.reports.model_card import card
from tutelage.sdvp.stages import TRAINING_INFO

LIMITS = (
    "It answers calls of visual programs, one skill each; nothing is known of other uses.",
    "What it is sure of wrongly, the programs that call it are sure of too: look at the steps of a trace.",
)
TOY_LIMITS = "A small network, schooled on drawn scenes of 48x48 pixels: it knows nothing of photographs."
BASE_MODEL_LIMITS = "It keeps the limits and the licence of the model that it was made from."
UNMEASURED = "Its accuracy after teaching was not measured in this run: measure it with `tutelage sdvp evaluate` before use."


def export(
    module: VisualModule,
    folder: str | Path,
    *,
    reports: Iterable[Mapping[str, Any]] = (),
    figures: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    limits: Iterable[str] = (),
) -> Path:
    """Write ``module`` into ``folder`` with ``save_pretrained`` and a card.

    Args:
        module: any module with a network.
        folder: config.json, model.safetensors and README.md go there (and ``tutelage.json`` for a transformers model).
        reports: its training in each stage, as ``taught.json`` holds it (:class:`~tutelage.sdvp.task.ModuleReport`).
        figures: ``{title, columns, rows, limits}``: accuracies by task, and what of them the reader must know.
        run: the stamp of the run's result: command, versions, machine, seeds; without it, this process's.
        limits: what else the reader must know.

    Raises:
        StorageError: the folder cannot be written.
    """
    known, large = list(reports), isinstance(module, HfModule)
    is_own = not large and type(module).__module__.startswith("tutelage.")
    own = (BASE_MODEL_LIMITS,) if large else (TOY_LIMITS,) if is_own else ()
    facts = {
        "title": f"{module.name}, distilled step by step" if known else module.name,
        "what": _what(module),
        "library": "transformers" if large else "tutelage",
        "license": "apache-2.0" if is_own else None,
        "base_model": module.config.source if isinstance(module, HfModule) and module.config.revision else None,
        "module": _module(module),
        "own_class": not is_own and not large,
        "lessons": [_report_row(row) for row in known],
        "labelled_teachers": bool(figures and figures.get("labelled_teachers")),
        "figures": figures,
        "figures_of": (figures or {}).get("title", ""),
        "limits": [*LIMITS, *own, *limits, *(figures["limits"] if figures else (UNMEASURED,))],
        "run": _run(run or environment.run_metadata(), large),
    }
    return module.save_pretrained(folder, card(facts))


def export_run(
    run: str | Path,
    name: str,
    folder: str | Path,
    arm: str = "sdvp",
    seed: int | None = None,
    *,
    classes: Iterable[type[VisualModule]] = (),
) -> Path:
    """Write the module ``name`` of a run folder: of a study or demo, of ``sdvp.compile``, or of ``tutelage sdvp train``.

    Of a study, the module as it was after the last stage that taught it, of the learning arm ``arm`` and of ``seed`` (default:
    the first). ``classes``: your own classes of modules, as of :func:`~tutelage.modules.loading.load`.

    Raises:
        InputError: no such run, module, arm or seed.
        StaleError, StorageError: as :func:`load` and :func:`export`.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError("no such folder", where=run, remedy="give the folder of a finished run")
    result: dict[str, Any] = {}
    if (run / "study.json").exists():
        result = storage.read_json(run / "study.json")
        seeds = result.get("seeds") or [0]
        seed = seeds[0] if seed is None else seed
        place = run / "lessons" / f"seed-{seed}-{arm}"
        if not place.is_dir():
            known = sorted(path.name for path in (run / "lessons").glob("seed-*"))
            raise InputError(
                f"the run has no arm {arm!r} of seed {seed}", where=run, remedy=did_you_mean(f"seed-{seed}-{arm}", known)
            )
    else:
        place = run
    found = _stages(place, name, result)
    if not found:
        known = sorted({path.parent.name for head in ("config.json", METADATA_FILE) for path in place.rglob(head)})
        raise InputError(f"no distilled module {name!r} here", where=place, remedy=did_you_mean(name, known))
    made = found[-1] / TRAINING_INFO if (found[-1] / TRAINING_INFO).exists() else place / TRAINING_INFO
    reports = [storage.read_json(at / "taught.json") for at in found if (at / "taught.json").exists()]
    stamp = result
    if made.exists():
        stamp = storage.read_json(made)
        reports += [row for row in stamp.get("lessons", []) if row["module"] == name]
    return export(
        load(found[-1], *classes),
        folder,
        reports=reports,
        figures=_figures(result, arm) if result else None,
        run=stamp or None,
        limits=("A smoke test's networks: they know nothing.",) if result.get("smoke") else (),
    )


def _stages(folder: Path, name: str, result: Mapping[str, Any]) -> list[Path]:
    """The folders of the module, a stage each, in the order they were taught: as a study's result tells it, else by time."""
    heads = {
        at: head
        for at in (folder / name, *folder.glob(f"*/{name}"))
        for head in ("config.json", METADATA_FILE)
        if (at / head).exists()
    }
    stages = ((result.get("tables") or {}).get("matrix") or {}).get("stages", [])
    order = {stage: number for number, stage in enumerate(stages)}
    return sorted(heads, key=lambda at: (order.get(at.parent.name, 0), (at / heads[at]).stat().st_mtime_ns))


def _what(module: VisualModule) -> str:
    lines = (type(module).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(lines.split())


def _module(module: VisualModule) -> dict[str, Any]:
    """What the module is, as plain values; long vocabularies are cut."""
    settings = {key: _short(value) for key, value in storage.to_plain(module.config).items() if value not in ("", None, [], ())}
    return {
        "name": module.name,
        "class": type(module).__name__,
        "args": [f"{name}: {kind}" for name, kind in module.signature.args.items()],
        "returns": module.signature.returns,
        "heads": ", ".join(f"{head} ({kind})" for head, kind in module.heads.items()),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "version": module.version,
        "settings": settings,
    }


def _short(value: Any, max_length: int = 200) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= max_length else f"{text[:max_length]}…"


def _report_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of the module's teaching; shares as per cent."""
    verdict = row.get("verdict") or {}
    probed = bool(verdict.get("calls"))
    return {
        "stage": row.get("stage"),
        "teacher": row.get("teacher"),
        "accepted": verdict.get("accepted", True),
        "teacher_score": 100.0 * verdict["teacher"] if probed else None,
        "student_score": 100.0 * verdict["student"] if probed else None,
        **{key: row.get(key) for key in ("records", "kept", "replayed", "share")},
    }


def _figures(result: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """The accuracies of a study, by task: of whole programs, with all taught modules at once; and where they fell."""
    rows, fell = [], []
    for row in (result.get("tables") or {}).get("arms", []):
        before, after, best = ((row["cells"].get(name) or {}).get("mean") for name in ("frozen", arm, "teacher"))
        rows.append([row["task"], row["group"], row["n"], before, after, best])
        if before is not None and after is not None and after < before - 1:
            fell.append(f"{row['task']} {after - before:+.1f}")
    if not rows:
        return None
    return {
        "title": "Accuracy of whole programs in per cent, with all modules of the arm, mean over the run's seeds. Previous "
        "tasks were known before, current ones are taught, unseen ones are never trained on.",
        "columns": ["task", "group", "questions", "before", f"after ({arm})", "the teachers"],
        "rows": rows,
        "limits": [f"Programs got worse by more than a point on {', '.join(fell)}."] if fell else [],
        "labelled_teachers": True,
    }


def _run(stamp: Mapping[str, Any], large: bool) -> dict[str, Any]:
    versions = dict(stamp.get("versions") or {})
    if large:
        versions["transformers"] = importlib.metadata.version("transformers")
    facts = {"versions": ", ".join(f"{name} {number}" for name, number in versions.items())}
    facts |= {key: str(stamp[key]) for key in ("seeds", "machine", "cores", "retain", "steps", "settings_hash") if stamp.get(key)}
    return {"command": stamp.get("command"), "facts": {key: value for key, value in facts.items() if value}}
