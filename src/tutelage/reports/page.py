"""What every report shares: checked fields, and the template environment that writes one self-contained page."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from tutelage.errors import InputError
from tutelage.reports import formatting
from tutelage.storage import read_json

T = TypeVar("T")
REMEDY = "is this the JSON that a tutelage command wrote, whole and unchanged?"


def replace_nan(value: Any) -> Any:
    """``value`` with NaN and infinities made None: not measured, printed as a dash."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_nan(item) for key, item in value.items()}
    return [replace_nan(item) for item in value] if isinstance(value, list) else value


def require_field(data: Any, path: str, expected_type: type[T], where: object) -> T:
    """The value at the dotted ``path`` of ``data``; a list is entered by its index.

    Raises:
        InputError: it is absent or not a ``expected_type``; the message names the field.
    """
    value = data
    for key in path.split("."):
        if isinstance(value, list):
            value = value[int(key)] if key.isdigit() and int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, expected_type):
        return value
    found = "absent" if value is None else f"a {type(value).__name__}"
    raise InputError(f"field {path} must be a {expected_type.__name__}, it is {found}", where=where, remedy=REMEDY)


def reads_results(report: Callable[[Any], str]) -> Callable[[Any], str]:
    """Have ``report`` refuse results whose fields are not as its page needs them, wherever that shows."""

    @functools.wraps(report)
    def checked(source: Any) -> str:
        try:
            return report(source)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, jinja2.TemplateError) as error:
            where = "results" if isinstance(source, Mapping) else source
            message = f"a field is missing or not as it must be: {type(error).__name__}: {error}"
            raise InputError(message[:300], where=where, remedy=REMEDY) from error

    return checked


def load(source: str | Path | Mapping[str, Any], file: str) -> tuple[dict[str, Any], object]:
    """Results from a mapping, a JSON file, or a run folder that holds ``file``; with the name that errors give them.

    Raises:
        InputError: there is no such file, or it is not a JSON object.
    """
    if isinstance(source, Mapping):
        return replace_nan(source), "results"
    path = Path(source)
    path = path / file if path.is_dir() else path
    data = replace_nan(read_json(path))
    if not isinstance(data, dict):
        raise InputError(f"a JSON object is expected, this is a {type(data).__name__}", where=path, remedy=REMEDY)
    return data, path


def check_format(data: Mapping[str, Any], format: str, version: int, where: object) -> None:
    """Refuse results of another kind or version.

    Raises:
        InputError: the field ``format`` or ``version`` is not the one that is read here.
    """
    if data.get("format") != format:
        raise InputError(f"field format is {data.get('format')!r}, not {format!r}", where=where, remedy=REMEDY)
    if data.get("version") != version:
        raise InputError(
            f"results of version {data.get('version')!r}, this reads version {version}",
            where=where,
            remedy="run the command again, or read them with the tutelage that wrote them",
        )


@cache
def environment() -> jinja2.Environment:
    """Templates of this package: everything escaped, nothing undefined, JSON safe inside a script element."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("tutelage.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False, "allow_nan": False}
    env.filters |= {name: getattr(formatting, name) for name in ("number", "signed", "interval", "percent", "duration", "amount")}
    return env


def render(template: str, where: object, **context: Any) -> str:
    """One HTML page; trailing blanks and empty lines are dropped.

    Raises:
        InputError: the results lack a field that the page needs.
    """
    try:
        text = environment().get_template(template).render(context)
    except jinja2.UndefinedError as error:
        raise InputError(f"a field is missing: {error.message}", where=where, remedy=REMEDY) from error
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"
