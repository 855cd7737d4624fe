"""The two languages of visual programs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tutelage.errors import InputError, did_you_mean
from tutelage.programs import visprog
from tutelage.programs.types import Signature

if TYPE_CHECKING:
    from tutelage.programs import viper
    from tutelage.programs.sandbox import Sandbox

LANGUAGES = ("visprog", "viper")


def parser_for(dsl: str, signatures: Mapping[str, Signature], sandbox: Sandbox | None = None) -> visprog.Parser | viper.Parser:
    """The parser of programs in the language ``dsl`` that call modules of these ``signatures``.

    ``sandbox``: where ViperGPT programs run; None: one that the process shares.

    Raises:
        InputError: an unknown language.
    """
    if dsl == "visprog":
        return visprog.Parser(signatures)
    if dsl == "viper":
        from tutelage.programs import viper  # its sandbox is loaded only where it is used

        return viper.Parser(signatures, sandbox=sandbox)
    raise InputError(f"unknown language {dsl!r}", where="dsl", remedy=did_you_mean(dsl, list(LANGUAGES)))
