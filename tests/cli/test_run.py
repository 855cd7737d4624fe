from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from typer.testing import CliRunner, Result

from tutelage.cli import main
from tutelage.cli.run import _line
from tutelage.programs.trace import Trace
from tutelage.sdvp import toy_modules

runner = CliRunner()
COLOR = "B=LOC(image=IMAGE,object='circle')\nI=CROP(image=IMAGE,box=B)\nA=VQA(image=I,question='{}')\nFINAL_RESULT=RESULT(var=A)"
SUM = "A=EVAL(expr='{} + 1')\nFINAL_RESULT=RESULT(var=A)"
VIPER = "def execute_command(image):\n    return ImagePatch(image).simple_query('What color is the circle?')"
PAIR = "A=LOC(image=LEFT,object='circle')\nB=COUNT(box=A)\nFINAL_RESULT=RESULT(var=B)"


def row(name: Any, program: str, dsl: str = "visprog", **images: str) -> dict[str, Any]:
    return {"id": name, "dsl": dsl, "program": program, "images": images or {"IMAGE": "0.png"}}


def invoke(*words: object, **options: Any) -> Result:
    return runner.invoke(main.app, ["run", *map(str, words)], **options)


def batch(home: Path, rows: Iterator[Any] | list[Any], taught: list[str], *words: object) -> tuple[Result, list[dict[str, Any]]]:
    file, out = home / "batch.jsonl", home / "out.jsonl"
    file.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows))
    result = invoke("--batch", file, "--json", out, *taught, *words)
    return result, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_a_program_is_run_and_every_step_is_shown(home: Path, taught: list[str]) -> None:
    (home / "p.txt").write_text(COLOR.format("What color is the circle?"))
    result = invoke(home / "p.txt", "--image", home / "0.png", "--json", home / "t.json", *taught)
    assert result.exit_code == 0, result.output
    trace = json.loads((home / "t.json").read_text())
    assert trace["status"] == "ok" and f"answer: {trace['answer']!r}" in result.stdout
    assert [step["module"] for step in trace["steps"]] == ["LOC", "CROP", "VQA", "RESULT"]
    assert trace["steps"][0]["output"] == [] and "step 2, CROP, is a fallback" in result.stdout
    assert trace["confidence"] == 0 and "confidence 0.00" in result.stdout
    assert all(word in result.stdout for word in ("probability", "LOC", "CROP"))


def test_a_program_comes_from_standard_input_and_its_trace_goes_to_standard_output(home: Path, taught: list[str]) -> None:
    result = invoke("-", "--image", home / "0.png", "--json", "-", *taught, input=SUM.format(2))
    assert result.exit_code == 0 and json.loads(result.stdout)["answer"] == 3


@pytest.mark.parametrize("words", [("--left", "0.png", "--right", "1.png"), ("--image", "0.png", "--image2", "1.png")])
def test_a_pair_is_left_and_right(words: tuple[str, ...], home: Path, taught: list[str]) -> None:
    given = [home / word if word.endswith("png") else word for word in words]
    result = invoke("-", *given, "--json", "-", *taught, input=PAIR)
    assert result.exit_code == 0 and isinstance(json.loads(result.stdout)["answer"], int), result.output


def test_a_viper_program_runs_on_the_same_modules(home: Path, taught: list[str]) -> None:
    result = invoke("-", "--image", home / "0.png", "--dsl", "viper", "--json", "-", *taught, input=VIPER)
    assert result.exit_code == 0 and [step["module"] for step in json.loads(result.stdout)["steps"]] == ["VQA"]


def test_a_program_that_fails_leaves_with_1_and_still_writes_its_trace(home: Path, taught: list[str]) -> None:
    result = invoke(
        "-", "--image", home / "0.png", "--json", home / "t.json", *taught, input="A=NOPE(x=1)\nFINAL_RESULT=RESULT(var=A)"
    )
    assert result.exit_code == 1 and "unknown_module" in result.stderr and "line 1" in result.stderr
    assert json.loads((home / "t.json").read_text())["status"] == "unknown_module"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give one program, or --batch"),
        (("p.txt", "--batch", "b.jsonl"), "give one program, or --batch"),
        (("--batch", "b.jsonl", "--image", "0.png"), "name their own images"),
        (("absent.txt", "--image", "{home}/0.png"), "absent.txt: cannot read the program"),
        (("{home}/0.png", "--image", "{home}/0.png"), "cannot read the program"),
        (("{home}/p.txt",), "one image or on two"),
        (("{home}/p.txt", "--left", "{home}/0.png"), "one image or on two"),
        (("{home}/p.txt", "--image", "{home}/absent.png"), "absent.png: no such image"),
        (("{home}/p.txt", "--image", "{home}/p.txt"), "p.txt: cannot read this as an image"),
    ],
)
def test_what_cannot_be_run_is_told_with_a_remedy(words: tuple[str, ...], told: str, home: Path) -> None:
    (home / "p.txt").write_text(SUM.format(1))
    result = invoke(*(word.format(home=home) for word in words))
    assert result.exit_code == 2 and told in result.stderr and "remedy:" in result.stderr


# Batches


def test_every_line_is_answered_in_its_order(home: Path, taught: list[str]) -> None:
    (home / "cut.png").write_bytes((home / "0.png").read_bytes()[:200])
    (home / "text.png").write_text("no picture")
    rows = [
        row("color", COLOR.format("What color is the circle?")),
        row("sum", SUM.format(1)),
        row("viper", VIPER, "viper"),
        row("pair", PAIR, LEFT="0.png", RIGHT="1.png"),
        row("parse", "A=("),
        row("refused", "import os"),
        row("unknown", "A=NOPE(x='1')\nFINAL_RESULT=RESULT(var=A)"),
        row("undefined", "FINAL_RESULT=RESULT(var=A)"),
        row("type", "A=COUNT(box=IMAGE)\nFINAL_RESULT=RESULT(var=A)"),
        row("zero", "A=EVAL(expr='1 / 0')\nFINAL_RESULT=RESULT(var=A)"),
        row("limit", "#" * 20_001),
        row("cut", SUM.format(1), IMAGE="cut.png"),
        row("text", SUM.format(1), IMAGE="text.png"),
        row("absent", SUM.format(1), IMAGE="absent.png"),
        row("viper refused", "def execute_command(image):\n    import os", "viper"),
        row(7, SUM.format(7), IMAGE=str(home / "2.png")),
    ]
    result, answers = batch(home, rows, taught)
    assert result.exit_code == 0, result.output
    assert [answer["id"] for answer in answers] == [one["id"] for one in rows]
    assert {"id", "status", "answer", "steps", "error"} <= set(answers[0])
    found = {answer["id"]: answer["status"] for answer in answers}
    assert found == {
        **dict.fromkeys(["color", "sum", "viper", "pair", 7], "ok"),
        **{"parse": "parse", "refused": "refused", "unknown": "unknown_module", "undefined": "undefined_var", "type": "type"},
        **dict.fromkeys(["zero", "cut", "text", "absent"], "runtime"),
        **{"limit": "limit", "viper refused": "refused"},
    }
    errors = {answer["id"]: answer["error"] for answer in answers}
    assert all((errors[name] is None) == (status == "ok") for name, status in found.items())
    assert all(f"{name}.png" in errors[name] for name in ("cut", "text", "absent"))
    assert answers[1]["answer"] == 2 and answers[-1]["answer"] == 8
    assert "16 programs" in result.stderr and "5 ok" in result.stderr


def test_a_small_window_gives_the_same_lines(home: Path, taught: list[str]) -> None:
    rows = [row(i, COLOR.format("What color is the circle?"), IMAGE=f"{i % 3}.png") for i in range(12)]
    rows += [row(i, SUM.format(i)) for i in range(12, 20)]
    (_, wide), (_, narrow) = batch(home, rows, taught), batch(home, rows, taught, "--window", 1)
    assert [(one["id"], one["answer"]) for one in wide] == [(one["id"], one["answer"]) for one in narrow]
    assert [one["id"] for one in wide] == list(range(20))


def test_words_outside_the_vocabulary_are_answered_and_counted(home: Path, taught: list[str]) -> None:
    unknown = "A=LOC(image=IMAGE,object='zebra')\nB=COUNT(box=A)\nFINAL_RESULT=RESULT(var=B)"
    result, answers = batch(home, [row("vqa", COLOR.format("What color is the zebra?")), row("loc", unknown)], taught)
    assert [answer["status"] for answer in answers] == ["ok", "ok"]
    assert answers[1]["answer"] == 0 and answers[0]["answer"] in dict(toy_modules.VOCABULARY.answers)["color"]
    assert [answer["out_of_vocabulary"] for answer in answers] == [1, 1] and "2 calls out_of_vocabulary" in result.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": 1, "dsl"', "batch.jsonl:2: not JSON"),
        ("[1, 2]\n", "batch.jsonl:2: not an object"),
        ({"id": 1, "dsl": "visprog", "program": "x"}, 'batch.jsonl:2: "images" is missing'),
        (row(None, "x"), 'batch.jsonl:2: "id" is a text'),
        (row(1, "x", "python"), 'batch.jsonl:2: "dsl" is'),
        (row(1, ["x"]), 'batch.jsonl:2: "program" is a text'),
        (row(1, "x", IMAGE="0.png", LEFT="1.png"), 'batch.jsonl:2: "images" is'),
        (row(1, "x", IMAGE=3), 'batch.jsonl:2: "images" is paths'),
    ],
)
def test_a_bad_line_names_file_and_line_and_leaves_nothing_behind(line: Any, told: str, home: Path, taught: list[str]) -> None:
    result, answers = batch(home, [row("good", SUM.format(1)), line], taught)
    assert result.exit_code == 2 and told in result.stderr and "remedy:" in result.stderr
    assert not answers and not [path for path in home.iterdir() if "out.jsonl" in path.name]


def test_a_file_that_cannot_be_read_or_written_is_told(home: Path, taught: list[str]) -> None:
    assert invoke("--batch", home / "absent.jsonl", *taught).exit_code == 2
    (home / "b.jsonl").write_text(json.dumps(row(1, SUM.format(1))))
    result = invoke("--batch", home / "b.jsonl", "--json", home / "0.png" / "out.jsonl", *taught)
    assert result.exit_code == 4 and "cannot write" in result.stderr


def test_an_empty_file_is_answered_by_an_empty_file(home: Path, taught: list[str]) -> None:
    result, answers = batch(home, [], taught)
    assert result.exit_code == 0 and answers == [] and (home / "out.jsonl").exists()


def test_without_a_file_the_lines_go_to_standard_output(home: Path, taught: list[str]) -> None:
    (home / "b.jsonl").write_text(json.dumps(row(1, SUM.format(1))) + "\n\n" + json.dumps(row(2, SUM.format(2))))
    result = invoke("--batch", home / "b.jsonl", *taught)
    assert [json.loads(line)["answer"] for line in result.stdout.splitlines()] == [2, 3]


def test_relative_paths_start_at_the_file_or_where_it_is_said(home: Path, taught: list[str]) -> None:
    (home / "b").mkdir()
    (home / "b" / "x.jsonl").write_text(json.dumps(row(1, SUM.format(1))))
    for words, status in (((), "runtime"), (("--images", home), "ok")):
        result = invoke("--batch", home / "b" / "x.jsonl", *words, *taught)
        assert json.loads(result.stdout)["status"] == status


def test_a_second_run_finds_its_answers_in_the_cache(home: Path, taught: list[str]) -> None:
    rows = [row(1, COLOR.format("What color is the circle?"))]
    (_, first), (_, second) = (batch(home, rows, taught, "--cache", home / "cache.db") for _ in range(2))
    assert first[0]["answer"] == second[0]["answer"]
    networks = [
        [step["ms"] > 0 for step in steps if step["module"] in ("LOC", "VQA")] for steps in (first[0]["steps"], second[0]["steps"])
    ]
    assert networks == [[True, True], [False, False]], "a stored answer takes no time"
    (home / "other").write_text("not a cache, but long enough to be looked at " * 50)
    result, _ = batch(home, rows, taught, "--cache", home / "other")
    assert result.exit_code == 3 and "not a result cache" in result.stderr


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), 10**5000, "\ud800", [float("-inf"), 1]], ids=["inf", "nan", "huge", "surrogate", "list"]
)
def test_every_answer_can_be_written_as_strict_json(value: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json.loads(_line(Trace("x", answer=value), "x").decode("ascii"), parse_constant=refuse)
    assert written["id"] == "x" and written["answer"] is not None


def test_what_had_to_be_done_to_a_picture_is_shown_and_counted(home: Path, taught: list[str]) -> None:
    red, blue = (PIL.Image.new("RGB", (48, 48), color) for color in ("red", "blue"))
    red.save(home / "moving.gif", save_all=True, append_images=[blue])
    one = invoke("-", "--image", home / "moving.gif", *taught, input=SUM.format(2))
    assert "IMAGE: the first of several frames" in one.stdout
    rows = [row(number, COLOR.format("What color is the circle?"), IMAGE="moving.gif") for number in range(3)]
    many, _ = batch(home, rows, taught)
    assert "1 pictures read: the first of several frames" in many.stderr


HOSTILE = {
    "hexadecimal": ("A=RESULT(var=0x" + "f" * 5_000 + ")\nFINAL_RESULT=RESULT(var=A)", "limit"),
    "decimal": ("A=RESULT(var=" + "9" * 5_000 + ")\nFINAL_RESULT=RESULT(var=A)", "parse"),
    "wrong_type": ("A=VQA(image=IMAGE,question=0x" + "f" * 5_000 + ")\nFINAL_RESULT=RESULT(var=A)", "limit"),
    "in_a_list": ("A=RESULT(var=[-0x" + "f" * 5_000 + "])\nFINAL_RESULT=RESULT(var=A)", "limit"),
    "in_eval": ("A=EVAL(expr='0x" + "f" * 1_500 + "')\nFINAL_RESULT=RESULT(var=A)", "limit"),
    "doubled": ("A=CROP(image=IMAGE,box=IMAGE,box=IMAGE)\nFINAL_RESULT=RESULT(var=A)", "type"),
    "surrogate": ("A=RESULT(var='\\ud800')\nFINAL_RESULT=RESULT(var=A)", "ok"),
    "surrogate_question": ("A=VQA(image=IMAGE,question='\\udfff')\nFINAL_RESULT=RESULT(var=A)", "ok"),
    "raw_surrogate": ("A=RESULT(var='\ud800')\nFINAL_RESULT=RESULT(var=A)", "parse"),
    "nul": ("A=RESULT(var='\\0')\nFINAL_RESULT=RESULT(var='\\0')", "ok"),
    "growing": ("A=LIST(query='a,b,c',max=3)\nB=EVAL(expr=\"{A} * 100000000\")\nFINAL_RESULT=RESULT(var=B)", "type"),
    "infinite": ("A=RESULT(var=1e999)\nFINAL_RESULT=RESULT(var=A)", "ok"),
}


def test_no_line_of_a_batch_ends_it(home: Path, taught: list[str]) -> None:
    rows = [row(name, program) for name, (program, _) in HOSTILE.items()]
    rows += [row("nul_path", SUM.format(1), IMAGE="a\0b"), row("surrogate_path", SUM.format(1), IMAGE="\ud800")]
    result, answers = batch(home, [*rows, row("last", SUM.format(1))], taught)
    assert result.exit_code == 0, result.output
    expected = {name: status for name, (_, status) in HOSTILE.items()}
    expected |= {"nul_path": "runtime", "surrogate_path": "runtime", "last": "ok"}
    assert {answer["id"]: answer["status"] for answer in answers} == expected
    doubled = next(answer for answer in answers if answer["id"] == "doubled")
    assert "'box' is given more than once" in doubled["error"] and "line 1" in doubled["error"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("out", ["-", "file"])
def test_one_hostile_program_is_answered_too(name: str, out: str, home: Path, taught: list[str]) -> None:
    program, status = HOSTILE[name]
    where = out if out == "-" else home / "t.json"
    result = invoke("-", "--image", home / "0.png", "--json", where, *taught, input=program.encode("utf-8", "surrogatepass"))
    assert result.exit_code == (0 if status == "ok" else 2 if name == "raw_surrogate" else 1), (result.output, result.exception)
    if name != "raw_surrogate":
        assert json.loads(result.stdout if out == "-" else where.read_text())["status"] == status  # type: ignore[union-attr]


def test_a_trace_that_cannot_be_written_is_a_failure() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    trace = Trace("1", answer=deep)
    line = json.loads(_line(trace, "a"))
    assert line["status"] == trace.status == "runtime" and line["answer"] is None and "RecursionError" in line["error"]
