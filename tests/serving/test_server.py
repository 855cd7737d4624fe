"""The server as a process: what it accepted it finishes, and then it leaves with 0. And its load test, in small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.bench import serving as bench
from tutelage.cli import main
from tutelage.environment import tune_garbage_collector
from tutelage.sdvp import toy_modules

from .conftest import picture, until
from .test_connections import call, figure, heard, sent

runner = CliRunner()
Begun = Callable[[dict[str, Any]], tuple[subprocess.Popen[str], int]]
LONG = "def execute_command(image):\n    return [ImagePatch(image).simple_query(str(i)) for i in range(20)]"


@pytest.fixture
def begun() -> Iterator[Begun]:
    """``process, port = begun({"queue": 3})``: a stub server with these settings, killed at the end if it still lives."""
    living: list[subprocess.Popen[str]] = []

    def begun(settings: dict[str, Any]) -> tuple[subprocess.Popen[str], int]:
        words = [sys.executable, "-m", "tutelage.bench.serving_process", "stub", "0", "1", json.dumps(settings)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        living.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline().rsplit(":", 1)[1])

    yield begun
    for process in living:
        process.kill()
        process.wait(10)


def children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def long_request() -> bytes:
    """20 calls, one after the other: 0.4 s of the stub's time."""
    return json.dumps({"images": [picture(1)], "program": LONG, "dsl": "viper", "trace": False}).encode()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_finished(begun: Begun, number: signal.Signals) -> None:
    process, port = begun({"batching": False})
    clients = [sent(port, long_request()) for _ in range(5)]
    until(lambda: figure(port, "tutelage_held_programs") == 5)
    process.send_signal(number)
    assert [heard(client)[0] for client in clients] == [200] * 5
    assert process.wait(20) == 0
    with pytest.raises(OSError):
        call(port)


@pytest.mark.slow
def test_what_takes_longer_than_the_grace_time_is_cut(begun: Begun) -> None:
    process, port = begun({"batching": False, "grace_s": 1})
    clients = [sent(port, long_request()) for _ in range(60)]  # 24 s of work
    until(lambda: figure(port, "tutelage_held_programs") == 60)
    process.terminate()
    assert process.wait(10) == 0
    for client in clients:
        client.close()


@pytest.mark.slow
def test_a_server_killed_in_mid_work_leaves_no_child_behind(begun: Begun) -> None:
    process, port = begun({})
    client = sent(port, long_request())
    until(lambda: bool(children(process.pid)))
    left = children(process.pid)
    process.kill()
    process.wait(10)
    client.close()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in left))


@pytest.mark.slow
def test_the_command_serves_the_embedded_modules(tmp_path: Path) -> None:
    saved = [module.save(tmp_path / name) for name, module in toy_modules.generalists(0, quick=True).items()]
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    words = [sys.executable, "-m", "tutelage", "serve", "--port", "0", "--key-file", key]
    words += [word for path in saved for word in ("--module", path)]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        assert call(port, path="/healthz")[0] == 200 and call(port)[0] == 401
        process.terminate()
        assert process.wait(20) == 0
        assert "all accepted requests are answered" in process.stdout.read()
        rows = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [(row["path"], row["code"]) for row in rows] == [("/healthz", 200), ("/metrics", 401)]


@pytest.mark.slow
def test_the_load_test_runs_and_says_what_it_saw(tmp_path: Path) -> None:
    tune_garbage_collector()
    done = runner.invoke(main.app, ["bench", "serving", "--smoke", "--json", str(tmp_path / "serving.json")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "serving.json").read_text())
    assert result["many"]["errors"] == result["beyond_queue"]["errors"] == 0
    assert result["beyond_queue"]["codes"].get("429", 0) > 0 and result["beyond_queue"]["answers_again_afterwards"]
    assert result["stub"]["on"]["mean_batch"]["LOC"] > 1 == result["stub"]["off"]["mean_batch"]["LOC"]


def test_what_clients_saw_is_counted() -> None:
    seen = bench.LoadResult([0.001 * number for number in range(1, 101)])
    seen.codes.update([200] * 100 + [429, 500])
    seen.faults.update(["OSError"])
    assert (seen.quantile(0.5), seen.quantile(0.99), seen.quantile(1.0)) == pytest.approx((51, 100, 100))
    assert seen.errors == 2
    seen += bench.LoadResult([1.0])
    assert len(seen.seconds) == 101


@pytest.mark.parametrize(
    ("key", "told"), [(None, "cannot read the key"), (" \n", "no key"), ("two words", "with blanks"), ("kéy", "with blanks")]
)
def test_a_key_file_that_holds_none(tmp_path: Path, key: str | None, told: str) -> None:
    if key is not None:
        (tmp_path / "key").write_text(key)
    done = runner.invoke(main.app, ["serve", "--key-file", str(tmp_path / "key")])
    assert done.exit_code == 2 and told in done.stderr and "remedy:" in done.stderr


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    import socket

    from tutelage.errors import InputError
    from tutelage.serving.server import serve
    from tutelage.serving.settings import DEFAULT

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen"):
            serve(None, DEFAULT, "127.0.0.1", taken.getsockname()[1])  # type: ignore[arg-type]
