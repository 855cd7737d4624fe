"""Polyglot teachers: the measures by hand, the table and its scaler, synthesis against a stub endpoint, students."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.rank_correlation import spearman
from tutelage.distillation.job import TrainingSettings
from tutelage.errors import InputError, StaleError
from tutelage.networks.causal_lm import CausalLM, TokenBatch, join_prompts
from tutelage.programs.generators.completions import Completion, CompletionCache
from tutelage.programs.generators.openai_endpoint import Endpoint, EndpointSettings
from tutelage.systems.polyglot_teachers import (
    Cell,
    ModelJudge,
    PolyglotTeachers,
    Row,
    Scaler,
    SeedPrompt,
    TestItem,
    balanced_subsample,
    distinctness,
    explain,
    mean_score,
    parse_score,
    performance_gap_recovered,
    polyglot_score,
    principal_components,
    rank_teachers,
    read_rows,
    read_seeds,
    read_table,
    read_test_items,
    response_perplexities,
    synthesize,
    tiny_text_model,
    train_students,
    write_rows,
    write_table,
)
from tutelage.systems.polyglot_teachers.analysis import lasso_weights, r_squared, ridge_weights
from tutelage.systems.polyglot_teachers.scores import INTRINSIC, quality_columns, write_ranking
from tutelage.systems.polyglot_teachers.synthesis import read_answer
from tutelage.systems.polyglot_teachers.toy_languages import (
    SIZES,
    clean_rows,
    largest_chances,
    toy_items,
    toy_languages,
    toy_writers,
)

from ..programs.generators.stub_server import Asked, Reply, said, serving

# -- measures --------------------------------------------------------------------------------------------------------


def test_distinctness_by_hand() -> None:
    assert distinctness([np.ones((5, 3))]) == pytest.approx(0, abs=1e-12)
    assert distinctness([np.eye(4)]) == pytest.approx(1)
    assert distinctness([[[1.0, 0.0]], [[0.2, math.sqrt(0.96)]]]) == pytest.approx(0.8)
    assert distinctness([[[1.0, 0.0], [0.0, 0.0]]]) == 1  # a text of nothing known has a cosine of 0


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_distinctness_needs_no_matrix(count: int, block: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    whole = 1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1))
    blocks = [vectors[start : start + block] for start in range(0, count, block)]
    assert distinctness(blocks) == pytest.approx(whole)


@pytest.mark.parametrize("vectors", [np.ones((1, 3)), np.full((2, 2), np.nan), np.ones(4)])
def test_one_text_has_no_distinctness(vectors: np.ndarray) -> None:
    with pytest.raises(InputError) as refused:
        distinctness([vectors])
    assert refused.value.remedy


def test_perplexity_is_of_the_response_alone() -> None:
    torch.manual_seed(0)
    network = CausalLM(12, 16, 1, 2)
    prompts, responses = [[2, 5], [2, 6, 7, 8, 9], [2]], [[3, 4, 10], [4], [11, 3]]
    batch = join_prompts(prompts, responses)
    found = response_perplexities(network(batch.ids, batch.mask), batch)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        alone = join_prompts([prompt], [response])
        logits = network(alone.ids, alone.mask)
        logs = logits[0].log_softmax(-1)
        nll = -sum(logs[len(prompt) + i - 1, token] for i, token in enumerate(response)) / len(response)
        assert found[row].item() == pytest.approx(nll.exp().item(), rel=1e-5)
        assert response_perplexities(logits, alone).item() == pytest.approx(found[row].item(), rel=1e-5)


def test_padding_on_the_left_changes_no_perplexity() -> None:
    torch.manual_seed(1)
    network = CausalLM(12, 16, 1, 2)
    right = join_prompts([[2, 5], [2, 6, 7, 8]], [[3, 4], [4]])
    lengths = right.mask.sum(1)
    move = torch.stack([torch.arange(right.ids.shape[1]).roll(int(right.ids.shape[1] - n)) for n in lengths])
    left = TokenBatch(*(part.gather(1, move) for part in (right.ids, right.mask, right.response)))
    assert not bool(left.mask[0, 0])
    one, other = (response_perplexities(network(b.ids, b.mask), b) for b in (right, left))
    assert torch.allclose(one, other, rtol=1e-4)


def test_an_empty_response_has_no_perplexity() -> None:
    batch = join_prompts([[2], [2]], [[3], []])
    with pytest.raises(InputError, match="row 1"):
        response_perplexities(torch.zeros(2, 2, 5), batch)


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 4", 4), ("3", 3), ("**Score**: 5", 5), ("Score: 2\nbut then\nScore: 3", 3), ("Score: 4.", 4),
     ("Score: 45", None), ("Score: 4.5", None), ("Score: 0", None), ("6", None), ("fine", None), ("", None)],
)  # fmt: skip
def test_scores_are_read(text: str, score: int | None) -> None:
    assert parse_score(text) == score


def test_what_has_no_score_is_counted_apart() -> None:
    assert mean_score([5, None, 4]) == (4.5, 1)
    assert mean_score([5, None, 4], missing_as=1) == (pytest.approx(10 / 3), 1)
    with pytest.raises(InputError, match="no score"):
        mean_score([None, None])
    with pytest.raises(InputError, match="7"):
        mean_score([7])


# -- subsamples ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 45))
def test_balanced_subsamples(strategies: list[str], size: int) -> None:
    chosen = balanced_subsample(strategies, size)
    assert chosen == balanced_subsample(strategies, size) and len(set(chosen)) == len(chosen) == min(size, len(strategies))
    counts = {name: strategies.count(name) for name in strategies}
    taken = {name: sum(strategies[i] == name for i in chosen) for name in counts}
    share = size // max(1, len(counts))
    assert all(taken[name] >= min(share, counts[name]) for name in counts)
    if counts and min(counts.values()) >= share + len(counts):
        assert max(taken.values()) - min(taken.values()) <= len(counts) - 1
        assert sum(taken[name] > share for name in counts) <= 1, "one strategy gets the whole remainder"


def test_the_remainder_goes_to_the_one_with_most_left() -> None:
    strategies = ["a"] * 2 + ["b"] * 5 + ["c"] * 9
    taken = [strategies[i] for i in balanced_subsample(strategies, 11)]  # 3 each; a has 2; c has 6 left, b 2
    assert [taken.count(name) for name in "abc"] == [2, 3, 6]
    tied = [("xxyy" * 3)[i] for i in balanced_subsample(list("xxyy" * 3), 5)]
    assert tied.count("x") == 3


# -- scores ----------------------------------------------------------------------------------------------------------


def cell(teacher: str = "a", language: str = "de", **numbers: float) -> Cell:
    given = {"distinct_prompts": 0.5, "distinct_responses": 0.4, "rubric": 3.0, "perplexity": 9.0} | numbers
    return Cell(teacher, language, **given)


CELLS = [
    cell("a", "de", rubric=4.5, student=50, base=10, reference=60, prompt_length=4, response_length=5, size=1),
    cell("a", "ja", perplexity=4.0, student=30, base=10, reference=60, prompt_length=5, response_length=7, size=1),
    cell(
        "b",
        "de",
        distinct_prompts=0.1,
        perplexity=20.0,
        student=20,
        base=10,
        reference=60,
        prompt_length=6,
        response_length=6,
        size=30,
    ),
    cell("b", "ja", rubric=2.0, student=25, base=30, reference=20, prompt_length=4, response_length=9, size=30),
]


def test_the_published_arithmetic() -> None:
    assert performance_gap_recovered(10, 10, 60) == 0 and performance_gap_recovered(60, 10, 60) == 1
    assert performance_gap_recovered(5, 10, 10) is None and performance_gap_recovered(5, 10, 9) is None
    assert polyglot_score(-0.3198, 0.5384) == pytest.approx(0.1093)
    assert [polyglot_score(2.0, -1.0, a) for a in (0, 0.5, 1)] == [-1, 0.5, 2]


def test_z_is_standardised_over_all_cells() -> None:
    scaler = Scaler.fit(CELLS)
    columns = (quality_columns(CELLS) - np.array(scaler.mean)) / np.array([d or np.inf for d in scaler.deviation])
    assert abs(columns.mean(0)).max() < 1e-12
    assert columns.std(0)[[0, 2, 3]] == pytest.approx(1)
    assert scaler.z(CELLS) == pytest.approx(columns.mean(1)) and scaler.constant == ["distinct_responses"]
    shifted = [replace(one, rubric=one.rubric + 0.25) for one in CELLS]
    assert Scaler.fit(shifted).z(shifted) == pytest.approx(scaler.z(CELLS))
    scaled = [replace(one, perplexity=3 * one.perplexity) for one in CELLS]
    assert abs(Scaler.fit(scaled).z(scaled) - scaler.z(CELLS)).max() > 1e-3


def test_a_ranking_leaves_invalid_gaps_out_and_lists_them() -> None:
    found = rank_teachers(CELLS)
    assert found.by == "PG" and found.invalid == [("b", "ja")]
    z = Scaler.fit(CELLS).z(CELLS)
    assert [one.teacher for one in found.teachers] == ["a", "b"]
    first, second = found.teachers
    assert first.score == pytest.approx(((z[0] + 0.8) / 2 + (z[1] + 0.4) / 2) / 2) and first.languages == 2
    assert first.low is not None and first.low < first.score and first.gain == 30
    assert second.score == pytest.approx((z[2] + 0.2) / 2) and second.low is None and second.languages == 1
    assert found.robustness["0.5"] == pytest.approx(1) and set(found.robustness) == {"0", "0.25", "0.5", "0.75", "1"}
    assert -1 <= found.correlations["size"] <= 1


def test_without_students_z_ranks() -> None:
    bare = [replace(one, student=None, base=None, reference=None) for one in CELLS]
    found = rank_teachers(bare)
    assert found.by == "z" and found.invalid == [] and found.robustness == {}
    assert all(one.gain is None for one in found.teachers)


def test_a_teacher_without_any_valid_gap_is_not_ranked() -> None:
    cells = [CELLS[0], CELLS[3], CELLS[1]]
    assert rank_teachers(cells).unranked == ["b"]


def test_a_stored_scaler_makes_tables_comparable(tmp_path: Path) -> None:
    scaler = Scaler.load(Scaler.fit(CELLS).save(tmp_path / "scaler.json"))
    assert scaler == Scaler.fit(CELLS)
    assert rank_teachers(CELLS[:1], scaler).cells[0].z == pytest.approx(Scaler.fit(CELLS).z(CELLS)[0])
    with pytest.raises(InputError, match="no spread"):
        rank_teachers(CELLS[:1])
    (tmp_path / "scaler.json").write_text('{"mean": [1], "deviation": [1]}')
    with pytest.raises(InputError, match="means"):
        Scaler.load(tmp_path / "scaler.json")


def test_components_and_fits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 6))
    found = principal_components(x)
    assert found.explained.sum() == pytest.approx(1) and (np.diff(found.explained) <= 1e-12).all()
    assert found.scores @ found.directions == pytest.approx((x - x.mean(0)) / x.std(0))
    linear_model = pytest.importorskip("sklearn.linear_model")
    y = x @ np.array([1.0, -2, 0, 0, 0.3, 0]) + 5 + 0.1 * rng.standard_normal(30)
    assert lasso_weights(x, y, 0.1) == pytest.approx(linear_model.Lasso(alpha=0.1, tol=1e-10).fit(x, y).coef_, abs=1e-5)
    assert ridge_weights(x, y, 1.0) == pytest.approx(linear_model.Ridge(alpha=1.0).fit(x, y).coef_)
    assert r_squared(x, y, ridge_weights(x, y, 0.0)) == pytest.approx(linear_model.LinearRegression().fit(x, y).score(x, y))
    with pytest.raises(InputError, match="no spread"):
        principal_components(np.ones((3, 2)))


def test_the_analysis_of_a_table() -> None:
    found = explain(CELLS)
    r2 = found["R2"]
    assert isinstance(r2, dict) and sum(found["explained"]) == pytest.approx(1)  # type: ignore[arg-type]
    assert r2["lasso"] <= r2["linear"] + 1e-9 and r2["ridge"] <= r2["linear"] + 1e-9
    with pytest.raises(InputError, match="prompt_length"):
        explain([replace(CELLS[0], prompt_length=None), *CELLS[1:]])
    with pytest.raises(InputError, match="student"):
        explain([replace(CELLS[0], student=None), *CELLS[1:]])


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_table_reads_back_and_ranks_the_same(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", CELLS)
    assert read_table(path) == CELLS
    assert rank_teachers(read_table(path)) == rank_teachers(CELLS)
    write_ranking(tmp_path / "r.csv", rank_teachers(CELLS))
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert lines[0] == "teacher,score,low,high,languages,gain" and lines[1].startswith("a,") and ",,," in lines[2]


HEAD = f"teacher,language,{','.join(INTRINSIC)}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no column 'teacher'"),
        (HEAD, "no cell"),
        (f"{HEAD}\na,de,1,1,3,\n", r":2: perplexity: a missing cell"),
        (f"{HEAD}\na,de,1,1,3\n", ":2: not as many values"),
        (f"{HEAD}\na,de,1,1,3,4,5\n", ":2: not as many values"),
        (f"{HEAD}\na,de,1,1,x,4\n", ":2: rubric: 'x' is no number"),
        (f"{HEAD}\na,de,1,1,6,4\n", ":2: rubric: 6"),
        (f"{HEAD}\na,de,1,1,nan,4\n", ":2: rubric: nan"),
        (f"{HEAD}\na,de,1,1,3,0.5\n", ":2: perplexity: 0.5"),
        (f"{HEAD}\n,de,1,1,3,4\n", "teacher"),
        (f"{HEAD}\na,de,1,1,3,4\na,de,1,1,3,4\n", ":3: 'a' in 'de' stands in line 2 too"),
        (f"{HEAD},student\na,de,1,1,3,4,5\n", "no column 'base' beside 'student'"),
        (f"{HEAD},student,base,reference\na,de,1,1,3,4,,1,2\n", ":2: student: a missing cell"),
        (f'{HEAD}\na,"de,1,1,3,4\n', "not CSV"),
    ],
)
def test_a_bad_table_is_refused_by_line_and_column(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=fault) as refused:
        read_table(path)
    assert str(path) in str(refused.value) and refused.value.remedy


def test_rows_seeds_and_questions_are_read(tmp_path: Path) -> None:
    rows = [Row("p", "r", "respond", "de", "m"), Row("", "r", "generate", "ja", "m")]
    assert read_rows(write_rows(tmp_path / "rows.jsonl", rows)) == rows
    (tmp_path / "s.jsonl").write_text('{"prompt": "p", "language": "de", "strategies": ["respond"]}\n')
    assert read_seeds(tmp_path / "s.jsonl") == [SeedPrompt("p", "de", ("respond",))]
    (tmp_path / "q.jsonl").write_text('{"prompt": "p", "response": "b", "language": "de", "choices": ["a", "b"]}\n')
    assert read_test_items(tmp_path / "q.jsonl") == [TestItem("p", "b", "de", ("a", "b"))]


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (read_rows, ""),
        (read_rows, "no json"),
        (read_rows, '{"prompt": "p", "response": "", "language": "de", "model": "m"}'),
        (read_rows, '{"prompt": 3, "response": "r", "language": "de", "model": "m"}'),
        (read_seeds, '{"prompt": "p", "language": "de", "strategies": ["guess"]}'),
        (read_test_items, '{"prompt": "p", "response": "c", "language": "de", "choices": ["a", "b"]}'),
    ],
)
def test_bad_lines_are_refused(read: object, line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{line}\n" if line else "")
    with pytest.raises(InputError) as refused:
        read(path)  # type: ignore[operator]
    assert str(path) in str(refused.value) and refused.value.remedy


# -- synthesis and judging against a stub endpoint -------------------------------------------------------------------

SEEDS = [SeedPrompt(f"prompt {i}", language, response="r") for i in range(4) for language in ("German", "English")]


def endpoint(url: str) -> Endpoint:
    return Endpoint(EndpointSettings(url, "stub", attempts=1, backoff=0.0, top_p=0.9))


def obedient(asked: Asked, number: int) -> Reply:
    text = asked.body["messages"][-1]["content"]
    row = {"prompt": f"new {number}", "response": f"answer {number}"}
    return said(json.dumps(row) if "JSON" in text else f"answer to {text}")


def test_a_teacher_writes_equal_shares_and_is_asked_once(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path)
    with serving(obedient) as server:
        first = synthesize(endpoint(server.url), SEEDS, "German", 8, cache=cache)
        requests = len(server.asked)
        body = server.asked[0].body
        again = synthesize(endpoint(server.url), SEEDS, "German", 8, cache=cache)
        assert len(server.asked) == requests, "answers come from the cache"
    assert body["top_p"] == 0.9 and body["temperature"] == 0.8 and "German" in body["messages"][0]["content"]
    counts = {name: sum(row.strategy == name for row in first.rows) for name in ("generate", "translate", "respond")}
    assert counts["generate"] == 3 and counts["translate"] == 3 and 1 <= counts["respond"] <= 2
    assert first.rows == again.rows and again.usage.answers == 0 and again.usage.cached == first.usage.answers == requests
    assert {row.language for row in first.rows} == {"German"} and {row.model for row in first.rows} == {"endpoint:stub"}


def test_nonsense_is_rejected_and_counted() -> None:
    with serving(lambda asked, number: said("I would rather not.")) as server:
        found = synthesize(endpoint(server.url), SEEDS, "German", 4, strategies=["generate", "translate"])
    assert found.rows == [] and found.rejected == {"not JSON": 4}
    with serving(lambda asked, number: Reply(b"<html>", 200)) as server:
        found = synthesize(endpoint(server.url), SEEDS, "German", 2, strategies=["respond"])
    assert found.rows == [] and found.rejected == {"failed": 2}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"prompt": " p ", "response": "r"}', ("p", "r")),
        ('<think>hm {"prompt"</think>```json\n{"prompt": "p", "response": "r"}\n```', ("p", "r")),
        ('{"prompt": "p"}', "not JSON"),
        ('{"prompt": "", "response": "r"}', "empty"),
        ("[1, 2]", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_answers_are_read(text: str, kept: object) -> None:
    assert read_answer(Completion(text), "generate", "") == kept
    assert read_answer(Completion(text, finish="length"), "generate", "") == "cut"


@pytest.mark.parametrize("choice", [["guess"], []])
def test_unknown_strategies_are_refused(choice: list[str]) -> None:
    with pytest.raises(InputError):
        synthesize(endpoint("http://127.0.0.1:1/v1"), SEEDS, "German", 4, strategies=choice)


def test_a_strategy_without_seeds_is_named() -> None:
    with pytest.raises(InputError, match="'Czech' for the strategy 'generate'") as refused:
        synthesize(endpoint("http://127.0.0.1:1/v1"), SEEDS, "Czech", 6)
    assert "generate" in (refused.value.remedy or "")


def test_a_model_judges_and_nonsense_is_counted() -> None:
    rows = [Row(f"p{i}", "r", "respond", "German", "m") for i in range(4)]
    script = lambda asked, number: said("Good. Score: 4" if "p1" in asked.body["messages"][-1]["content"] else "hello")  # noqa: E731
    with serving(script) as server:
        judge = ModelJudge(endpoint(server.url))
        assert judge(rows) == [None, 4, None, None] and judge.usage.answers == 4
        tool = PolyglotTeachers(judge=judge, fluency=lambda own: [2.0] * len(own))
        (found,) = tool.measure(rows)
    assert found.rubric == 4 and tool.unscored == {("m", "German"): 3}


# -- measuring and students ------------------------------------------------------------------------------------------


def test_cells_are_measured_apart() -> None:
    rows = [Row(f"p {i}", f"r {i} {i}", "respond", "de", "m") for i in range(4)] + [Row("p", "r", "respond", "ja", "m")] * 2
    tool = PolyglotTeachers(judge=lambda own: [3.0] * len(own), fluency=lambda own: [float(i + 2) for i in range(len(own))])
    one, other = tool.measure(rows)
    assert (one.language, one.perplexity, one.prompt_length, one.response_length) == ("de", 3.5, 2, 3)
    assert other.distinct_prompts == pytest.approx(0, abs=1e-9) and one.distinct_prompts > 0.1
    assert tool.rank(rows).teachers[0].teacher == "m"


@pytest.mark.parametrize(
    ("rows", "judge", "fault"),
    [
        ([], lambda own: [], "no row"),
        ([Row("p", "r", "s", "de", "m")], lambda own: [3.0], "one row"),
        ([Row("p", "r", "s", "de", "m")] * 2, lambda own: [3.0], "1 scores"),
        ([Row("p", "r", "s", "de", "m")] * 2, lambda own: [0.0, 3.0], "score of 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(rows: list[Row], judge: object, fault: str) -> None:
    tool = PolyglotTeachers(judge=judge, fluency=lambda own: [2.0] * len(own))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=fault):
        tool.measure(rows)


def test_students_learn_and_scores_are_kept(tmp_path: Path) -> None:
    (language,) = toy_languages(0, 1)
    rows = [replace(row, model="good") for row in clean_rows(language, 24, 0)]
    base = tiny_text_model(language.words, 0)
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    settings = TrainingSettings(steps=80, batch_size=16, lr=1e-2)
    items = [TestItem(row.prompt, row.response, language.name) for row in rows]
    calls = list[float]()
    given = ([cell("good", language.name)], rows, base, base.tuned(rows, settings), items, settings)
    (found,) = train_students(*given, out=tmp_path, on_cell=lambda done, total: calls.append(done))
    assert found.base == 0 and found.student is not None and found.student > 90 and calls == [1]
    assert all(torch.equal(before[name], value) for name, value in base.network.state_dict().items())
    (again,) = train_students(*given, out=tmp_path)
    assert again == found and len(list(tmp_path.glob("student-*.json"))) == 1
    with pytest.raises(StaleError, match="settings"):
        train_students(*given[:-1], replace(settings, lr=0.5), out=tmp_path)
    for changed, fault in ((given[0] + [cell("bad", "de")], "no row of 'bad'"), (given[0], "no question")):
        with pytest.raises(InputError, match=fault):
            train_students(changed, rows, base, base, items if "row" in fault else [TestItem("p", "r", "ja")], settings)


def test_exact_answers_are_what_greedy_decoding_gives() -> None:
    (language,) = toy_languages(3, 1)
    items = toy_items(language, 3)[0][:40]
    model = tiny_text_model(language.words, 1)
    model = model.tuned(clean_rows(language, 80, 3), TrainingSettings(steps=60, batch_size=32, lr=1e-2))
    right = 0
    for item in items:
        ids = torch.tensor([model.encode_prompt(item.prompt)])
        for _ in range(5):
            chosen = model.network(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1].argmax()
            ids = torch.cat([ids, chosen[None, None]], 1)
        wanted = [*model.encode(item.response), model.end]
        right += ids[0, 3 : 3 + len(wanted)].tolist() == wanted
    assert 0 < right < len(items), "a student that is neither perfect nor useless tests both answers"
    assert model.accuracy(items) == right / len(items)


def test_choices_are_ranked_by_mean_log_probability() -> None:
    model = tiny_text_model(["p", "a", "b"], 0).tuned(
        [Row("p", "a", "s", "x", "m")], TrainingSettings(steps=30, batch_size=1, lr=1e-2)
    )
    item = TestItem("p", "a", "x", ("b b b", "a", "b"))
    assert model.accuracy([item]) == 1 and model.accuracy([replace(item, response="b")]) == 0
    with pytest.raises(InputError):
        model.accuracy([])


def test_writers_are_drawn_apart_from_their_size() -> None:
    for seed in range(5):
        writers = toy_writers(seed)
        assert sorted(writer.quality for writer in writers) == list(range(6))
        assert abs(spearman([writer.quality for writer in writers], SIZES)) <= 0.15
    assert sum(largest_chances().values()) == pytest.approx(1) and max(largest_chances().values()) < 0.3
    (language,) = toy_languages(0, 1)
    best, worst = (min(writers, key=lambda w: sign * w.quality) for sign in (-1, 1))
    scores = [np.mean([language.judge(row) for row in writer.rows(language, 0, 400, 0)]) for writer in (best, worst)]
    assert scores[0] == 5 and scores[1] < 3
    assert all(language.judge(row) == 5 for row in clean_rows(language, 50, 0))
    validation, test = toy_items(language, 0)
    assert len(validation) == 100 and len({item.prompt for item in [*validation, *test]}) == 256
