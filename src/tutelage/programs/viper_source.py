"""Finds a ViperGPT program in what a language model wrote, and what its entry takes.

Models put programs in Markdown fences, with prose before and behind them; they repeat the header that the prompt ended with,
or leave it out; and what they imitate takes many forms: ``execute_command(image)``, ``(image_dict)``, ``(image_list)``,
``(video, possible_answers, query)``, or names of the library among the arguments.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import NamedTuple

from tutelage.programs.types import LimitExceeded, ParseFailure

ENTRY = "execute_command"
FORM = f"write def {ENTRY}(image): …"

IMAGE = ("image", "img", "picture", "photo", "image_patch", "input_image", "im", "frame")
PAIR = {"image_dict": None, "images_dict": None, "image_pair": None}
LIST = ("image_list", "images", "imgs", "image_patches", "pictures", "list_of_images")
VIDEO = ("video", "video_segment", "frames", "clip")
LEFT = ("left_image", "image_left", "left", "image1", "image_1", "img1", "first_image", "image_a")
RIGHT = ("right_image", "image_right", "right", "image2", "image_2", "img2", "second_image", "image_b")
OPTIONS = ("possible_answers", "choices", "options", "answers", "candidates")
QUESTION = ("query", "question", "statement", "prompt", "text")

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_HEADER = re.compile(rf"^[ \t]*def[ \t]+{ENTRY}\w*[ \t]*\(.*$")
_WARNS = re.compile(r"\\|\d[^\W\d]")
"""What Python's parser may warn of: escapes that are none, and numbers that end in letters."""
_RETURNS = re.compile(r"^[ \t]*return\b", re.MULTILINE)
_BEGINS = re.compile(r"(?:def|class|import|from|@)\b|@")


class Source(NamedTuple):
    """A program's tree, and the text it stands for: line n of ``text`` is line n + ``first_line`` - 1 of what was given."""

    tree: ast.Module
    text: str
    first_line: int


class Role(NamedTuple):
    """What an argument of the entry stands for: image, pair, list, video, left, right, options, question, or nothing."""

    name: str
    role: str
    keyword: bool = False


def read_source(given: str, limit: int) -> Source:
    """The program in ``given``, of at most ``limit`` bytes.

    Raises:
        ParseFailure: there is none.
        LimitExceeded: too long, or nested too deeply to be read.
    """
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        raise ParseFailure("the text holds characters that are none (lone surrogates)") from None
    if size > limit:
        raise LimitExceeded(f"{size:,} bytes of source; at most {limit:,} are read")
    given = given.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    tree = _parsed(given)
    if isinstance(tree, ast.Module) and (entry := entry_of(tree)) is not None and not _is_only_a_header(entry):
        return Source(tree, given, 1)
    for text, first_line in _candidates(given):
        found = _parsed(text)
        if isinstance(found, ast.Module) and (entry := entry_of(found)) is not None and _answers(entry):
            return Source(found, text, first_line)
    if isinstance(tree, SyntaxError):
        raise ParseFailure(f"not Python: {tree.msg}", where=f"line {tree.lineno}", remedy=FORM)
    if tree is None:
        raise LimitExceeded("the source is nested too deeply")
    raise ParseFailure(f"the program defines no function {ENTRY}", remedy=FORM)


def entry_of(tree: ast.Module) -> ast.FunctionDef | None:
    """The function that is called: the last one of its name, or the only one whose name begins so."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(ENTRY)]
    named = [node for node in functions if node.name == ENTRY]
    return named[-1] if named else functions[-1] if functions else None


def roles_of(entry: ast.FunctionDef, library: frozenset[str]) -> list[Role]:
    """What each argument of the entry stands for; ``library`` are names that programs see anyway.

    Arguments of other names are left out where they have a default, and are None where they have not; only the first one is
    an image whatever its name.
    """
    args = entry.args
    plain = [*args.posonlyargs, *args.args]
    without_default = len(plain) - len(args.defaults)
    found = [_role(arg.arg, place, place < without_default, library) for place, arg in enumerate(plain)]
    while found and found[-1].role == "default":
        found.pop()
    roles = [role._replace(role="nothing") if role.role == "default" else role for role in found]
    for arg, default in zip(args.kwonlyargs, args.kw_defaults):
        role = _role(arg.arg, 1, default is None, library)
        if role.role != "default":
            roles.append(role._replace(keyword=True))
    return roles


def role_of_name(name: str) -> str | None:
    """What a variable of this name stands for that a program reads without having set it."""
    table = (
        ("image", IMAGE[:5]),
        ("pair", tuple(PAIR)),
        ("list", LIST[:2]),
        ("video", VIDEO[:1]),
        ("options", OPTIONS[:1]),
        ("question", QUESTION[:2]),
    )
    return next((role for role, names in table if name in names), None)


def _role(name: str, place: int, needed: bool, library: frozenset[str]) -> Role:
    table = (
        *(("image", IMAGE), ("pair", tuple(PAIR)), ("list", LIST), ("video", VIDEO)),
        *(("left", LEFT), ("right", RIGHT), ("options", OPTIONS), ("question", QUESTION)),
    )
    for role, names in table:
        if name in names:
            return Role(name, role)
    if name in library:
        return Role(name, "library")
    if place == 0 and needed:
        return Role(name, "image")
    return Role(name, "nothing" if needed else "default")


def _is_only_a_header(entry: ast.FunctionDef) -> bool:
    """Whether the function holds nothing but the header given again, with its body."""
    return any(isinstance(node, ast.FunctionDef) and node.name == entry.name for node in entry.body) and not _answers(entry)


def _answers(function: ast.FunctionDef) -> bool:
    """Whether the function returns something, leaving functions within it aside."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _parsed(text: str) -> ast.Module | SyntaxError | None:
    """The tree, what is wrong with the text, or None where it is nested too deeply."""
    try:
        if _WARNS.search(text) is None:
            return ast.parse(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a program writes oddly is no news to the one who runs it
            return ast.parse(text)
    except SyntaxError as error:
        return error
    except ValueError as error:
        return SyntaxError(str(error))
    except (RecursionError, MemoryError, SystemError, OverflowError):
        return None


def _candidates(given: str) -> list[tuple[str, int]]:
    """Texts that may be the program, with the lines that they begin on; lines are kept, so that their numbers hold."""
    found = []
    parts = [(match.group(1), given.count("\n", 0, match.start(1)) + 1) for match in _FENCE.finditer(given)]
    parts.sort(key=lambda part: ENTRY not in part[0])  # stable: the first that names the entry
    for text, first in [*parts, (given, 1)]:
        lines = text.split("\n")
        found.append((_dedented(lines), first))
        found += [(_dedented(form), first) for form in (_without_second_header(lines), _without_prose(lines)) if form]
        found += [(_body(lines), first - 1)] if _RETURNS.search(text) else []
    return found


def _dedented(lines: list[str]) -> str:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def _without_second_header(lines: list[str]) -> list[str] | None:
    """A header is given twice where the prompt ended with it: the second stays."""
    headers = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    for first, second in zip(headers, headers[1:]):
        if not any(line.strip() and not line.strip().startswith("#") for line in lines[first + 1 : second]):
            kept = [*lines]
            kept[first] = ""
            margin = len(lines[second]) - len(lines[second].lstrip())
            if margin:  # the second stands where a body would: it, and its own body, move out
                kept[second:] = [line[margin:] if not line[:margin].strip() else line for line in kept[second:]]
            return _without_prose(kept) or kept
    return None


def _without_prose(lines: list[str]) -> list[str] | None:
    """From the first line that begins code to the last one that still parses; other lines are blank."""
    header = next((number for number, line in enumerate(lines) if _HEADER.match(line)), None)
    if header is None:
        return None
    begin = header
    while begin > 0 and (not lines[begin - 1].strip() or lines[begin - 1][0] in " \t#" or _BEGINS.match(lines[begin - 1])):
        begin -= 1
    ends = [number for number in range(header + 1, len(lines)) if lines[number].strip() and lines[number][0] not in " \t#"]
    for end in [*reversed([*ends[-40:], len(lines)])]:
        kept = [*([""] * begin), *lines[begin:end]]
        if isinstance(_parsed("\n".join(kept)), ast.Module):
            return kept
    return None


def _body(lines: list[str]) -> str:
    """Lines without a header, as a model gives them that goes on behind it."""
    name = next((name for name in (*PAIR, *LIST[:1], *VIDEO[:1]) if any(name in line for line in lines)), "image")
    extra = "".join(f", {word}" for word in (OPTIONS[0], QUESTION[0]) if any(word in line for line in lines))
    first = next((line for line in lines if line.strip()), "")
    margin = len(first) - len(first.lstrip())
    body = [" " + line[margin:] if not line[:margin].strip() else line for line in lines]
    return f"def {ENTRY}({name}{extra}):\n" + "\n".join(body)
