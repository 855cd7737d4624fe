"""How programs run inside the sandbox. This file is fed to it after the prelude of the programs' language.

A program is never suspended. It runs from its beginning until it needs an output that is not known yet: then
``call_modules`` notes the call and raises KeyboardInterrupt, which no ``except Exception`` of a program catches. When the host
has the output, the program runs again from its beginning, and outputs that are known are given at once. Programs are
deterministic, so each run takes the same way. A call that was noted counts, whatever a program made of the exception.

Values cross as plain data: an image is ``("image", root, (x1, y1, x2, y2), (width, height))``, a box ``("box", x1, y1, x2, y2,
score)``, a name of the prelude ``("name", name)``; no other tuples cross.
"""

import math
import random
import re
import time

_public = {}
_modules = {}
_limits = {}
_programs = {}
_runs = {}
_current = None
_live = False


class _Run:
    """A program under way. ``outputs`` are those of its module calls so far, as they came; ``used`` of them were given to it
    since its last beginning; ``asked`` is the call it waits for, ``failure`` what ends it."""

    def __init__(self, source, once, seeded, entry, positional, named, extra):
        self.source, self.once, self.seeded, self.entry = source, once, seeded, entry
        self.positional, self.named, self.extra = positional, named, extra
        self.outputs = []
        self.made = {}
        self.arguments = None
        self.used = 0
        self.asked = None
        self.failure = None


def setup(modules, limits):
    """Make the names of the prelude, and these modules, known to programs."""
    defined = {"ImagePatch": ImagePatch, "VideoSegment": VideoSegment, "distance": distance, "llm_query": llm_query}
    defined.update({"bool_to_yesno": bool_to_yesno, "coerce_to_numeric": coerce_to_numeric, "print": _silent})
    defined.update({"process_guesses": process_guesses, "best_image_match": best_image_match})
    defined.update({"math": math, "re": re, "_first": _first, "_next": _next, "_modules": _module_table()})
    _public.update(defined)
    _limits.update(limits)
    for name, called, types, optional in modules:
        _modules[name] = True
        function = _module_function(name, dict(types), optional)
        for alias in called:
            _public[alias] = function


def play(opened, items, dropped):
    """Take programs as far as they go; the reply for each is (seconds, "ask" | "done" | "fail", ...)."""
    for number in dropped:
        _runs.pop(number, None)
    for number, description in opened:
        _runs[number] = _Run(*description)
    return [_advance(number, outputs) for number, outputs in items]


def live(opened, item):
    """Take one program as far as it goes, with the host waiting for its calls: those it answers while the program is suspended.
    Nothing else may run meanwhile."""
    global _live
    for number, description in opened:
        _runs[number] = _Run(*description)
    _live = True
    try:
        return _advance(*item)
    finally:
        _live = False


def again(number):
    """Run a failed program once more, with nothing between its exception and the host: the host sees the line."""
    global _current
    run = _runs.pop(number)
    _begin(run)
    _entry(run)


def has_module(name):
    """Whether a module of this name is registered."""
    return name in _modules


def call_modules(calls, make=None):
    """The outputs of these calls, known from before; else the program stops here."""
    run = _current
    if run.asked is None and run.failure is None:
        first = run.used
        run.used += len(calls)
        if run.used <= len(run.outputs):
            if make is None:
                return [_decode(output) for output in run.outputs[first : run.used]]
            if first not in run.made:
                run.made[first] = make([_decode(output) for output in run.outputs[first : run.used]])
            return run.made[first]
        if run.used > _limits["calls"]:
            run.failure = ("LimitExceeded", f"more than {_limits['calls']:,} module calls")
        else:
            room = [_limits["length"]]
            own_calls = []
            for at in range(len(calls)):
                name, arguments = calls[at]
                own_calls.append((name, {arg: _encode(arguments[arg], room) for arg in arguments}, first + at))
            if room[0] < 0:
                run.failure = ("LimitExceeded", f"a module call longer than {_limits['length']:,}")
            elif _live and _answered_at_once(run, own_calls):
                run.used = first
                return call_modules(calls, make)
            else:
                run.asked = own_calls
    raise KeyboardInterrupt


def _answered_at_once(run, calls):
    """Whether the host could answer a call while the program is suspended: not where the sandbox sorts, or prints a value."""
    try:
        run.outputs.extend(_host(calls))
    except RuntimeError:
        return False
    return True


def _unregistered(name, module):
    if _current.failure is None and _current.asked is None:
        _current.failure = ("UnknownModule", f"{name} needs the module {module}, which is not registered")
    raise KeyboardInterrupt


def _advance(number, outputs):
    run = _runs[number]
    run.outputs.extend(outputs)
    started = time.process_time()
    reply = _outcome(run)
    if reply[0] == "done":
        _runs.pop(number)
    return (time.process_time() - started, *reply)


def _outcome(run):
    _begin(run)
    reply = None
    try:
        value = _entry(run)
        if run.asked is None and run.failure is None:
            room = [4 * _limits["length"]]
            value = _encode(value, room, True)
            if room[0] < 0:
                run.failure = ("LimitExceeded", f"an answer longer than {4 * _limits['length']:,}")
            reply = ("done", value)
    except BaseException as error:
        reply = ("fail", type(error).__name__, str(error)[:1000])
    if run.failure is not None:
        return ("fail", *run.failure)
    if run.asked is not None:
        return ("ask", run.asked)
    return reply


def _begin(run):
    global _current
    _current = run
    run.used, run.asked, run.failure = 0, None, None
    if run.seeded:
        random.seed(0)


def _entry(run):
    names = _programs.get(run.source) if run.once else None
    if names is None:
        names = dict(_public)
        for name in run.extra:
            names[name] = _decode(run.extra[name])
        exec(run.source, names)
        if run.once:
            _programs[run.source] = names
    if run.named:
        return names[run.entry](*_decode(run.positional), **_decode(run.named))
    if len(run.positional) == 1 and isinstance(run.positional[0], tuple):  # one image: nothing in it can change
        if run.arguments is None:
            run.arguments = _decode(run.positional)
        return names[run.entry](run.arguments[0])
    return names[run.entry](*_decode(run.positional))


def _decode(value):
    if isinstance(value, tuple):
        if value[0] == "image":
            return Image(*value[1:])
        return _public[value[1]] if value[0] == "name" else value
    if isinstance(value, list):
        return [_decode(part) for part in value]
    if isinstance(value, dict):
        return {name: _decode(value[name]) for name in value}
    return value


def _encode(value, room, answer=False):
    """``value`` as plain data; ``room[0]`` falls by its size, and below 0 the rest is left out."""
    if isinstance(value, str):
        room[0] -= len(value)
        return value if room[0] >= 0 else None
    room[0] -= 4
    if room[0] < 0 or value is None or isinstance(value, (bool, float)):
        return None if room[0] < 0 else value
    if isinstance(value, int):
        if abs(value) >> _limits["bits"]:
            raise OverflowError(f"an integer of more than {_limits['bits']} bits")
        return value
    if isinstance(value, ImagePatch):
        return ("box", *_box_of(value)) if answer else _encode(value.cropped_image, room)
    if isinstance(value, Image):
        return ("image", value._root, value._region, value._size)
    if isinstance(value, tuple) and len(value) == 6 and value[0] == "box" and not answer:
        return value
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return _encode_items(value, room, answer)
    if isinstance(value, dict):
        return {str(name): _encode(value[name], room, answer) for name in _fitting(value, room)}
    if isinstance(value, VideoSegment):
        return _encode_items(value._frames, room, answer)
    raise TypeError(f"an answer is a text, number, patch or a list of these, not {type(value).__name__}")


def _encode_items(values, room, answer):
    parts = []
    for part in values:
        if room[0] < 0:
            break
        parts.append(_encode(part, room, answer))
    return parts


def _fitting(values, room):
    return list(values)[: room[0] + 1]


def _silent(*values, **options):
    """print, whose output nobody reads."""


def _first(values, wanted, found):
    """The first non-empty list that ``found`` gives for one of the ``values`` that are ``wanted``; else the empty list."""
    for value in values:
        if wanted(value):
            result = found(value)
            if result:
                return result
    return []


def _next(found, *default):
    if found:
        return found[0]
    if default:
        return default[0]
    raise StopIteration


# Outside the sandbox: what the files that are fed before this one define.
from tutelage.programs.sandbox_shims import _module_table  # noqa: E402
from tutelage.programs.viper_prelude import (  # noqa: E402
    Image,
    ImagePatch,
    VideoSegment,
    _box_of,
    _module_function,
    best_image_match,
    bool_to_yesno,
    coerce_to_numeric,
    distance,
    llm_query,
    process_guesses,
)


def _host(calls):
    """What suspends a program: inside the sandbox there is no function of this name, and calls of it come to the host."""
    raise RuntimeError
