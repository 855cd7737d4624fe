from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.programs.generators import grammar

from ..modules.tiny_language_model import make_model
from ..programs.generators.stub_server import PROGRAM, Reply, refused, said, serving

runner = CliRunner()
COLOR = "What color is the circle?"
KEYED = ["--set", "endpoint.url=http://h/v1", "--set", "endpoint.model=m", "--set", "endpoint.key_variable=NO_KEY"]


def tutelage(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, [*map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_the_grammar_writes(dsl: str, tmp_path: Path) -> None:
    code, out, err = tutelage("generate", COLOR, "How many signs are there?", "--dsl", dsl, "--json", tmp_path / "w.json")
    written = json.loads((tmp_path / "w.json").read_text())
    assert code == 0 and "programs: 2 ok" in out, err
    assert [draft["text"] for draft in written["drafts"]][0] == grammar.generate(COLOR)._asdict()[dsl]
    assert written["counts"] == {"ok": 2} and written["writer"] == "grammar" and "usage" not in written


def test_what_cannot_be_written_is_counted_and_leaves_with_1() -> None:
    code, out, err = tutelage("generate", COLOR, "Tell me a joke")
    assert code == 1 and "# parse: the grammar does not read 'Tell me a joke'\n#  remedy:" in out
    assert "programs: 1 ok, 1 parse" in out and "1 of 2 questions without a valid program" in err


def test_pairs_and_images_of_one_thing() -> None:
    assert "image=LEFT" in tutelage("generate", "The left image contains a circle.", "--pair")[1]
    assert "LOC" not in tutelage("generate", "What color is the shape?", "--single")[1]


def test_stored_programs_and_functional_ones(tmp_path: Path) -> None:
    line = {"id": "a", "dsl": "visprog", "program": PROGRAM, "images": {"IMAGE": "x.png"}, "question": "What is it?"}
    (tmp_path / "gold.jsonl").write_text(json.dumps(line))
    code, out, err = tutelage("generate", "What is it?", "--generator", "gold", "--set", f"gold.programs={tmp_path / 'gold.jsonl'}")
    assert code == 0 and PROGRAM in out, err
    steps = [{"operation": "select", "argument": "circle (1)", "dependencies": []}]
    steps += [{"operation": "query", "argument": "color", "dependencies": [0]}]
    asked = {
        "imageId": "1", "question": COLOR, "isBalanced": True, "answer": "red", "fullAnswer": "red", "semantic": steps,
        "semanticStr": "", "types": {"structural": "query", "semantic": "attr", "detailed": "x"}, "entailed": [], "equivalent": [],
        "groups": {"global": None, "local": None}, "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
    }  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps({"07": asked}))
    semantic = ("--generator", "semantic", "--set", f"semantic.questions={tmp_path / 'q.json'}")
    code, out, err = tutelage("generate", COLOR, "07", *semantic)
    assert code == 0 and out.count(grammar.generate(COLOR).visprog) == 2, err


def at(url: str, folder: Path, **changes: object) -> list[str]:
    """Options for the stub endpoint, from a file and from the command line."""
    settings = folder / "writers.toml"
    settings.write_text('[endpoint]\nurl = "http://elsewhere/v1"\nmodel = "stub"\nbackoff = 0.0\nprice_in = 1\nprice_out = 2\n')
    named = {"endpoint.url": url, "prompt.cache": str(folder / "kept"), "endpoint.attempts": 2} | changes
    options = ["--generator", "endpoint", "--settings", str(settings)]
    return options + [word for name, value in named.items() for word in ("--set", f"{name}={value}")]


def test_an_endpoint_writes_and_its_cost_is_told(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")

    def script(asked: Any, number: int) -> Reply:
        if asked.question == "bad":
            return refused(503, "busy")
        return said(f"```\n{PROGRAM}\n```" if asked.question == "good" else "No.", logprobs=[0.0])

    with serving(script) as server:
        options = [*at(server.url, tmp_path), "--json", str(tmp_path / "w.json")]
        code, out, err = tutelage("generate", "good", "bad", "odd", *options)
        written = json.loads((tmp_path / "w.json").read_text())
        assert code == 1 and written["counts"] == {"ok": 1, "parse": 1, "writer": 1}, err
        assert written["usage"]["cost"] == pytest.approx((200 * 1 + 40 * 2) / 1e6) and written["faults"] == {"503": 2}
        assert "200 tokens in, 40 out; cost 0.000280; 1 requests failed; faults: 2 x 503" in out
        assert [draft["probability"] for draft in written["drafts"]] == [1.0, None, 1.0]
        assert written["writer"] == "endpoint:stub"
        code, out, err = tutelage("generate", "good", *options)
        assert code == 0 and "0 answers; 1 from the cache; 0 tokens in, 0 out; cost 0.000000" in out, err
        assert len(server.asked) == 4


def test_several_samples_of_one_question(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    with serving(lambda asked, number: said(PROGRAM if number else "?")) as server:
        options = at(server.url, tmp_path, **{"prompt.choice": "random", "prompt.shots": 2, "prompt.keep": "false"})
        code, out, err = tutelage("generate", "What is it?", "--samples", 3, *options)
    assert code == 0 and "programs: 2 ok, 1 parse" in out and not (tmp_path / "kept").exists(), err
    assert len({json.dumps(asked.body["messages"][:-1]) for asked in server.asked}) == 3


def test_solve_runs_what_an_endpoint_wrote(home: Path, taught: list[str]) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    with serving(lambda asked, number: said(PROGRAM)) as server:
        options = [*at(server.url, home), "--json", str(home / "t.json")]
        code, out, err = tutelage("solve", home / "0.png", "What is it?", *options, *taught)
    trace = json.loads((home / "t.json").read_text())
    assert code == 0 and PROGRAM in out and f"answer: {trace['answer']!r}" in out, err
    assert trace["written"]["usage"]["tokens_in"] == 100 and "cost 0.000140" in out


def test_solve_lets_several_programs_vote(home: Path, taught: list[str]) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    count = "BOX0=LOC(image=IMAGE,object='LEFT')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
    replies = [said("I see nonsense."), said(count), said(count.replace("LEFT", "TOP")), said(PROGRAM), refused(400)]
    with serving(lambda asked, number: replies[number]) as server:
        options = at(server.url, home, **{"endpoint.concurrency": 1})
        code, out, err = tutelage("solve", home / "0.png", "How?", "--samples", 5, "--json", home / "t.json", *options, *taught)
    trace = json.loads((home / "t.json").read_text())
    assert code == 0 and "3 of 5 programs vote, 67% of them for the answer; 1 parse; 1 writer" in out, out
    assert trace["answer"] == 1 and trace["written"]["votes"]["failures"] == {"parse": 1, "writer": 1}


def test_solve_shows_a_fault_to_its_writer_once(home: Path, taught: list[str]) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    wrong = PROGRAM.replace("VQA", "VGA")

    def script(asked: Any, number: int) -> Reply:
        return said(PROGRAM if "This program fails (unknown_module)" in asked.body["messages"][-1]["content"] else wrong)

    with serving(script) as server:
        options = [*at(server.url, home), "--json", home / "t.json", *taught]
        code, out, err = tutelage("solve", home / "0.png", "What is it?", "--repair", *options)
        assert code == 0 and "1 programs failed, 1 went back to their writer, 1 were mended" in out, err
        assert len(server.asked) == 2 and server.asked[1].body["messages"][-2]["content"] == wrong
        written = json.loads((home / "t.json").read_text())["written"]
        assert written["repairs"]["mended"] == {"unknown_module": 1} and written["usage"]["tokens_in"] == 200
    code, _, err = tutelage("solve", home / "0.png", COLOR, "--repair", *taught)
    assert code == 2 and "the generator grammar cannot repair" in err


@pytest.mark.parametrize(
    ("reply", "told"),
    [(said("I see a cat."), "the program fails (parse)"), (refused(500), "no answer in 2 attempts: HTTP 500: no")],
)
def test_solve_tells_how_an_endpoint_failed(reply: Reply, told: str, home: Path, taught: list[str]) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    with serving(lambda asked, number: reply) as server:
        code, _, err = tutelage("solve", home / "0.png", "What is it?", *at(server.url, home), *taught)
    assert code == 1 and told in err


def test_a_local_model_writes(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    model = ["--set", f"local.model={make_model(tmp_path / 'model')}", "--set", "local.max_tokens=4"]
    options = [*model, "--set", "prompt.shots=1", "--set", f"prompt.cache={tmp_path / 'kept'}", "--json", str(tmp_path / "w.json")]
    for cached in (0, 1):
        code, out, err = tutelage("generate", COLOR, "--generator", "local", *options)
        assert code == 1 and "programs: 1 limit" in out, err
        written = json.loads((tmp_path / "w.json").read_text())
        assert written["usage"]["cached"] == cached and written["usage"]["cost"] is None
        assert written["drafts"][0]["status"] == "limit" and 0 < written["drafts"][0]["probability"] < 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--generator", "endpoint"], "the generator endpoint has no settings"),
        (["--generator", "local"], "the generator local has no settings"),
        (["--generator", "gold"], "the generator gold has no settings"),
        (["--set", "endpoint.modle=x"], "endpoint.modle: unknown key"),
        (["--set", "endpoint"], "not an override: 'endpoint'"),
        (["--set", "prompt.choice=best"], "unknown value 'best'"),
        (["--set", "prompt.shots=-1"], "shots: -1 is below 0"),
        (["--set", "endpoint.url=nowhere", "--set", "endpoint.model=m"], "not the address of an endpoint"),
        (["--settings", "absent.toml"], "absent.toml: no such file"),
        (["--generator", "endpoint", *KEYED], "NO_KEY: the environment variable is not set"),
    ],
)
def test_settings_that_do_not_hold_are_refused(words: list[str], told: str) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    code, _, err = tutelage("generate", COLOR, *words)
    assert code == 2 and told in err and "remedy:" in err


def test_own_examples_that_do_not_hold_are_refused_with_their_line(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra `endpoint`")
    examples = tmp_path / "mine.txt"
    examples.write_text(
        f"Question: a\nProgram:\n{PROGRAM}\n\nQuestion: b\nProgram:\nANSWER0=VQA(picture=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"
    )
    with serving(lambda asked, number: said(PROGRAM)) as server:
        code, _, err = tutelage("generate", COLOR, *at(server.url, tmp_path, **{"prompt.examples": examples}))
    assert code == 2 and f"{examples}:8: the example 'b' does not hold (type)" in err and not server.asked
