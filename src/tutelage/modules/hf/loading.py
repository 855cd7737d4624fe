"""The door for transformers models: a folder, or a hub name with its revision pinned; safetensors alone, and no foreign code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from safetensors import SafetensorError

from tutelage.errors import InputError, MissingExtra, did_you_mean

PREFIX = "hf:"
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model's folder (``revision`` is empty), or its hub name at a revision: a commit, a tag or a branch."""

    name: str
    revision: str = ""

    @classmethod
    def read(cls, text: str) -> Source:
        """``hf:OWNER/NAME@REVISION`` or ``hf:FOLDER``; the prefix may be left out.

        Raises:
            InputError: neither, or a hub name without a revision.
        """
        given = text.removeprefix(PREFIX)
        if given and Path(given).expanduser().is_dir():
            return cls(str(Path(given).expanduser()))
        name, at, revision = given.rpartition("@") if "@" in given else (given, "", "")
        if not _HUB.fullmatch(name):
            raise InputError("no such folder", where=text, remedy="give hf:FOLDER, or a hub name as hf:OWNER/NAME@REVISION")
        if not revision:
            raise InputError(
                "neither a folder nor a hub name with its revision" if not at else "the revision is empty",
                where=text,
                remedy=f"pin it: hf:{name}@REVISION, a commit or tag of its page; a branch name is resolved to its commit",
            )
        return cls(name, revision)

    @property
    def local(self) -> bool:
        """Whether it is a folder."""
        return not self.revision

    @property
    def pinned(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is given."""
        return {"trust_remote_code": False} | ({"local_files_only": True} if self.local else {"revision": self.revision})


def read_settings(words: str, config: type) -> dict[str, Any]:
    """``a=1&b=x,y`` as settings of the dataclass ``config``, each of the type of its default.

    Raises:
        InputError: a setting that it does not have, or a file of values that cannot be read.
        ValueError: a value of another type.
    """
    known = {field.name: field.default for field in fields(config) if field.name not in ("source", "revision", "prepared")}
    found: dict[str, Any] = {}
    for name, text in parse_qsl(words, keep_blank_values=True, strict_parsing=bool(words)):
        if name not in known:
            raise InputError(f"no setting {name!r}", where=f"?{words}", remedy=did_you_mean(name, list(known)))
        kind = type(known[name])
        if kind is tuple:
            found[name] = tuple(value.strip() for value in _values(text) if value.strip())
        elif kind is bool:
            found[name] = {"true": True, "false": False}[text] if text in ("true", "false") else kind(int(text))
        else:
            found[name] = kind(text)
    return found


def _values(text: str) -> list[str]:
    if not text.startswith("@"):
        return text.split(",")
    try:
        return Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read: {error}", where=text[1:], remedy="give a text file, a line a value") from error


def transformers() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws for each file, in the midst of ours."""
    kit = transformers().utils.logging
    drawn = kit.is_progress_bar_enabled()
    kit.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            kit.enable_progress_bar()


@contextmanager
def describe_load_errors(source: Source) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into an error that says how to have it."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError, TypeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if source.local:
            remedy = (
                "the folder needs config.json, model.safetensors and the files of its processor, as save_pretrained writes them"
            )
        else:
            fetch = f"hf download {source.name} --revision {source.revision} --local-dir DIR"
            remedy = f"where the hub can be reached: {fetch}; then give the folder: hf:DIR"
        named = f"{source.name}@{source.revision}" if source.revision else source.name
        raise InputError(f"cannot load: {lines[0]}", where=f"{PREFIX}{named}", remedy=remedy) from error


def architecture(source: Source) -> Any:
    """The model's transformers configuration.

    Raises:
        InputError: it cannot be had, or needs code of its own.
    """
    kit = transformers()
    with describe_load_errors(source):
        return kit.AutoConfig.from_pretrained(source.name, **source.pinned)


def processor_of(source: Source) -> Any:
    """What prepares the model's images and words.

    Raises:
        InputError: it cannot be had.
    """
    kit = transformers()
    with describe_load_errors(source):
        return kit.AutoProcessor.from_pretrained(source.name, **source.pinned)


def weights_of(source: Source, kind: Any, dtype: str, device: str) -> Any:
    """The model of class ``kind`` with its weights, in ``dtype`` (``auto``: as they are stored), on ``device``.

    Raises:
        InputError: it cannot be had, has no safetensors, lacks weights (none is ever made up), or there is no such device.
    """
    with describe_load_errors(source), quiet():
        model, info = kind.from_pretrained(
            source.name, **source.pinned, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{len(missing)} weights of {type(model).__name__} are not in the model, the first: {missing[0]}",
            where=f"{PREFIX}{source.name}",
            remedy="choose a model that was trained for this skill",
        )
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot run there: {error}", where=f"device={device}", remedy="cpu, cuda or cuda:NUMBER") from error
