from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tutelage import errors, terminal
from tutelage.cli import _renamed, lazy, main

FOLDER = Path(main.__file__).parent
FOUND = lazy.found_commands(FOLDER, "tutelage.cli")
runner = CliRunner()


def tutelage(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tutelage", *words], capture_output=True, text=True, **options)


def test_every_command_file_is_found_with_a_name_and_a_help_line() -> None:
    apps = {file.stem for file in FOLDER.glob("[!_]*.py")} - {"main", "lazy"}
    apps |= {file.parent.name for file in FOLDER.glob("[!_]*/__init__.py")}
    found = FOUND
    assert {command.module.rpartition(".")[2] for command in found.values()} == apps
    assert len(found) == len(apps), "two files claim one name"
    assert all(command.help for command in found.values()), "a command file needs a docstring"
    assert list(found) == sorted(found)


def test_help_lists_every_command_and_imports_none() -> None:
    program = (
        "import sys; from tutelage.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'rich', 'jinja2', 'tutelage.cli.systems', 'tutelage.storage'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in FOUND:
        assert f"\n  {name} " in done.stdout


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of every command below ``command`` that is no group."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield words
    for name, each in inner.items():
        yield from _commands(each, (*words, name))


@pytest.mark.parametrize("found", FOUND.values(), ids=lambda found: found.name)
def test_every_command_has_help_with_an_example(found: lazy.CommandSpec) -> None:
    command = typer.main.get_command(importlib.import_module(found.module).app)
    for words in _commands(command, (found.name,)):
        result = runner.invoke(main.app, [*words, "--help"])
        assert result.exit_code == 0, result.output
        assert f"tutelage {' '.join(words)}" in " ".join(result.output.split()), f"{words}: --help shows no example"


def test_the_module_is_the_command() -> None:
    done = tutelage("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "tutelage")


def test_an_unknown_command_offers_the_nearest_and_fails() -> None:
    done = tutelage("shwo")
    assert done.returncode == 2 and "Did you mean 'show'?" in done.stderr


def test_a_typed_error_is_a_message_with_its_remedy_and_exit_code() -> None:
    done = tutelage("show", "no-such-system")
    assert done.returncode == errors.InputError.exit_code
    assert done.stderr.startswith("error: no experiment of 'no-such-system'\n  remedy: ")
    assert "Traceback" not in done.stderr and not done.stdout


def test_the_debug_variable_lets_the_traceback_through() -> None:
    done = tutelage("show", "no-such-system", env=os.environ | {"TUTELAGE_DEBUG": "1"})
    assert done.returncode != 0 and "Traceback" in done.stderr


def _write(place: Path, text: str) -> lazy.CommandSpec | None:
    file = place / "my_file.py"
    file.write_text(text)
    return lazy.read_command(file, "some.where")


def test_a_command_is_named_by_its_file_or_by_its_app(tmp_path: Path) -> None:
    head = '"""Does a thing.\n\nMore."""\nimport typer\n'
    assert _write(tmp_path, head + "app = typer.Typer()\n")[:2] == ("my-file", "Does a thing.")
    assert _write(tmp_path, head + 'app = typer.Typer(name="eval", no_args_is_help=True)\n').name == "eval"
    assert _write(tmp_path, head + "def helper(): ...\n") is None


def test_a_folder_is_a_group_of_its_files(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "__init__.py").write_text('"""Things."""\nimport typer\napp = typer.Typer()\n')
    (group / "one.py").write_text('"""The first."""\nimport typer\napp = typer.Typer()\n')
    assert lazy.found_commands(tmp_path, "pack") == {"group": ("group", "Things.", "pack.group")}
    assert lazy.found_commands(group, "pack.group") == {"one": ("one", "The first.", "pack.group.one")}


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (
            errors.StaleError("old", where="run.json", remedy="a new folder"),
            3,
            "error: run.json: old\n  remedy: a new folder",
        ),
        (errors.MissingExtra("ray", "ray"), 5, "pip install 'tutelage[ray]'"),
        (KeyboardInterrupt(), 130, "To go on:\n  tutelage demo --seed 3"),
    ],
)
def test_errors_become_messages_and_codes(
    raised: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/tutelage", "demo", "--seed", "3"])
    with pytest.raises(typer.Exit) as left, terminal.reported():
        raise raised
    captured = capsys.readouterr()
    assert left.value.exit_code == code
    assert words in captured.err and not captured.out


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), terminal.reported():
        _ = 1 / 0


def test_json_goes_to_a_file_or_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": [1, 2.5], "out": tmp_path}
    terminal.emit(value, None)
    assert capsys.readouterr().out == ""
    terminal.emit(value, "-")
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2.5], "out": str(tmp_path)}
    terminal.emit(value, str(tmp_path / "new" / "x.json"))
    assert json.loads((tmp_path / "new" / "x.json").read_text())["a"] == [1, 2.5]
    with pytest.raises(errors.StorageError):
        terminal.emit(value, str(tmp_path / "new" / "x.json" / "y.json"))


def test_text_moves_to_standard_error_when_json_takes_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.console("-").print("text")
    assert capsys.readouterr() == ("", "text\n")
    terminal.console("out.json").print("text")
    assert capsys.readouterr() == ("text\n", "")


def test_a_bar_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("working", total=3) as bar:
        bar(1, 3)
        bar.advance()
        bar.describe("still working")
    assert capsys.readouterr() == ("", "")


def test_a_result_is_stamped() -> None:
    stamp = terminal.run_metadata([1, 2])
    assert set(stamp) == {"command", "seeds", "versions", "machine", "cores"}
    assert stamp["seeds"] == [1, 2] and stamp["cores"] >= 1 and set(stamp["versions"]) == {"tutelage", "python", "torch", "numpy"}


def test_programs_and_the_package_itself_load_no_torch() -> None:
    program = (
        "import pkgutil, importlib, sys, tutelage, tutelage.programs as p\n"
        "for m in pkgutil.walk_packages(p.__path__, 'tutelage.programs.'): importlib.import_module(m.name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_systems_are_listed_as_json() -> None:
    result = runner.invoke(main.app, ["systems", "--json", "-"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert all(set(row) == {"name", "card", "kind", "state", "verdict", "claims_shown", "claims"} for row in rows)


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (("write", "What is it?"), "'write' is now 'generate'"),
        (("world", "make", "data"), "'world' is now 'synthetic'"),
        (("sdvp", "blame", "run"), "'blame' is now 'attribute'"),
        (("bench", "writers"), "'writers' is now 'generators'"),
        (("solve", "a.png", "What is it?", "--writer", "gold"), "'--writer' is now '--generator'"),
        (("solve", "a.png", "What is it?", "--page", "a.html"), "'--page' is now '--html'"),
        (("sdvp", "label", "a", "b", "--teacher", "VQA=color", "--gate", "0"), "'--gate' is now '--min-confidence'"),
        (("sdvp", "collect", "a", "b", "--part", "8"), "'--part' is now '--shard-size'"),
        (("sdvp", "train", "a", "b", "--retain", "ewc"), "'--retain' is now '--continual'"),
        (("serve", "--models", "packaged"), "'--models' is now '--modules'"),
        (("run", "--batch", "programs.jsonl", "--modules", "packaged"), "'packaged' is now 'pretrained'"),
        (("assets", "fetch", "nanodet", "--again"), "'--again' is now '--force'"),
    ],
)
def test_an_old_name_is_refused_and_the_new_one_named(words: tuple[str, ...], new: str) -> None:
    result = runner.invoke(main.app, words)
    assert result.exit_code == 2 and new in result.output, result.output


def test_every_new_name_of_the_table_exists() -> None:
    """A renamed name that is renamed again must be renamed in the table too."""
    commands, options = set(), set()
    for spec in FOUND.values():
        command = typer.main.get_command(importlib.import_module(spec.module).app)
        for words in _commands(command, (spec.name,)):
            commands |= set(words)
            options |= set(re.findall(r"--[a-z-]+", runner.invoke(main.app, [*words, "--help"]).output))
    assert set(_renamed.RENAMED.values()) <= commands | options | {"toy", "pretrained"}
    assert not set(_renamed.RENAMED) & (commands | options), "an old name still works"
