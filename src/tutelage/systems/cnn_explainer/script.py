"""The page's own engine, run outside a page: by Node where it is installed, else by a headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

from tutelage.errors import InputError

NODE = ("node", "nodejs")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LIMIT_SECONDS = 300


def find_program(names: tuple[str, ...]) -> str | None:
    """The first of ``names`` that is installed."""
    return next(filter(None, map(shutil.which, names)), None)


def script_host() -> str | None:
    """What can run the engine here: the path of Node or of Chromium; None: neither is installed."""
    return find_program(NODE) or find_program(CHROMIUM)


def page_file(name: str) -> str:
    """The text of a file of the page."""
    return files("tutelage.systems.cnn_explainer").joinpath("page", name).read_text(encoding="utf-8")


def run_script(code: str, data: Mapping[str, Any], host: str | None = None) -> Any:
    """What ``main(data)`` of the JavaScript ``code`` returns, behind ``engine.js`` and ``nested.js``.

    Args:
        code: defines ``main``, which takes and returns what JSON can hold. Only scripts of this library belong here.
        data: its argument.
        host: Node or Chromium; None: :func:`script_host`.

    Raises:
        InputError: neither is installed, or the script fails.
    """
    host = host or script_host()
    if host is None:
        raise InputError(
            "the page's engine needs JavaScript, and neither Node nor Chromium is installed",
            where="PATH",
            remedy="apt-get install chromium (or nodejs)",
        )
    text = "\n".join([page_file("engine.js"), page_file("nested.js"), code])
    given = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    with tempfile.TemporaryDirectory() as folder:
        if Path(host).name in NODE:
            file = Path(folder) / "script.js"
            file.write_text(f"{text}\nconsole.log(JSON.stringify(main({given})));\n", encoding="utf-8")
            output = _run([host, str(file)], folder)
        else:
            file = Path(folder) / "script.html"
            body = f"{text}\ndocument.documentElement.textContent = JSON.stringify(main({given}));"
            file.write_text(f"<!doctype html><meta charset=utf-8><script>{body}</script>", encoding="utf-8")
            options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--dump-dom"]
            page = _run([host, *options, file.as_uri()], folder)
            output = unescape(re.sub(r"<[^>]*>", "", page))
    try:
        return json.loads(output)
    except ValueError as error:
        raise InputError(f"the script gave no JSON: {output[:200]!r}", where=host, remedy="a fault of the page's engine") from error


def _run(command: list[str], folder: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or error
        raise InputError(f"the script failed: {str(reason)[-300:]}", where=command[0], remedy="is the program whole?") from error
    return done.stdout


FORWARD = """
const numbers = (values) => Array.from(values);
const main = ({ model, pixels }) => {
  const ready = Engine.prepare(model);
  return pixels.map((one) => Engine.forward(ready, Engine.normalize(one, ready.input)).map(numbers));
};
"""
"""``main({model, pixels})``: the outputs of every layer for each picture."""

TIMES = """
const main = ({ model, pixels, rounds }) => {
  const ready = Engine.prepare(model), nested = Nested.prepare(ready), input = Engine.normalize(pixels, ready.input);
  const ways = { typed: () => Engine.forward(ready, input), nested: () => Nested.forward(nested, input) };
  const times = { typed: [], nested: [] };
  for (const way of Object.values(ways)) way();
  for (let round = 0; round < rounds; round++)
    for (const [name, way] of Object.entries(ways)) {
      const begin = performance.now();
      way();
      times[name].push(performance.now() - begin);
    }
  const last = { typed: Array.from(ways.typed().at(-1)), nested: ways.nested().at(-1) };
  return { times, difference: Math.max(...last.typed.map((value, i) => Math.abs(value - last.nested[i]))) };
};
"""
"""``main({model, pixels, rounds})``: milliseconds of one picture by typed and by nested arrays, interleaved, after one warm-up."""
