"""A file of GQA's layout, however long: it reads as GQA does, and reading it takes no more memory."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tutelage.bench.gqa_readers import bench, records
from tutelage.cli import main
from tutelage.datasets import gqa

runner = CliRunner()


def test_questions_are_many_distinct_and_whole(tmp_path: Path) -> None:
    count = 6000
    rows = list(records(count, seed=0))
    assert len(rows) == len({question_id for question_id, _, _ in rows}) == count
    ids = {question_id for question_id, _, _ in rows}
    assert all(name in ids for _, record, _ in rows for name in (*record["entailed"], *record["equivalent"]))
    (tmp_path / "q.json").write_text(json.dumps({question_id: record for question_id, record, _ in rows[-20:]}))
    assert len(list(gqa.read_questions(tmp_path / "q.json"))) == 20


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = runner.invoke(main.app, ["bench", "gqa", "--smoke", "--folder", str(tmp_path / "files"), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["scores"]["questions"] == found["questions"] == 3000
    assert 50 < found["scores"]["accuracy"] < 80, "six of ten are right, and some by luck"
    assert found["scores"]["consistency"] is not None and found["scores"]["validity"] is not None
    assert "3,000 questions" in done.stdout and found["smoke"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small, large = (bench(tmp_path / str(count), count)["reading"] for count in (1_000, 12_000))
    assert large["peak_rss_mib"] < small["peak_rss_mib"] + 8, "the file is 10 MiB longer, and several times as large as objects"
    assert len(large["rss_mib"]) == 10
