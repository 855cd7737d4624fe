"""MIND: sets and weights of paths, MetaNet's loss, what trains what, files, and answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage import distill
from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.programs.generators.completions import Completion, CompletionRequest
from tutelage.programs.types import ProgramFailure
from tutelage.systems.mind import (
    MIND,
    Item,
    MetaNet,
    collect_rationales,
    consistency,
    drop_easy,
    exact_match,
    item_data,
    jensen_shannon,
    path_set,
    path_weights,
    ranking_loss,
    read_items,
    write_items,
)
from tutelage.systems.mind.items import same_answer
from tutelage.systems.mind.metanet import rank_agreement
from tutelage.systems.mind.toy import PREFIX, question_and_answer, questions, toy_items, toy_student

SCORES = torch.tensor([[2.0, 1.2, 0.4]])
LOSSES = torch.tensor([[0.5, 1.0, 3.0]])
ALL = torch.ones(1, 3, dtype=torch.bool)


# -- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "chosen", "weights"),
    [(0.6, [1, 1, 0], [0.68997, 0.31003, 0]), (0.7, [1, 0, 0], [1, 0, 0]), (0.0, [1, 1, 1], [0.60563, 0.27213, 0.12228])],
)
def test_set_and_weights_of_the_card(beta: float, chosen: list[int], weights: list[float]) -> None:
    found = path_set(SCORES, ALL, beta)
    assert found[0].int().tolist() == chosen
    assert path_weights(SCORES, found, 1.0)[0].tolist() == pytest.approx(weights, abs=6e-5)


def test_ranking_loss_by_hand_in_both_directions() -> None:
    assert ranking_loss(SCORES, LOSSES, ALL).item() == pytest.approx(0.050799, abs=1e-6)
    assert ranking_loss(SCORES, LOSSES, ALL, target_first=True).item() == pytest.approx(0.041615, abs=1e-6)
    assert ranking_loss(-LOSSES + 7, LOSSES, ALL).item() == pytest.approx(0, abs=1e-6)


def test_jensen_shannon_by_hand() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.2, 0.7]).log()
    assert jensen_shannon(p, q).item() == pytest.approx(0.253102, abs=1e-6) == jensen_shannon(q, p).item()
    assert jensen_shannon(p, p).item() == pytest.approx(0, abs=1e-7)
    far = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    assert jensen_shannon(far[0], far[1]).item() == pytest.approx(math.log(2), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 50, width=32), min_size=4, max_size=4),
    st.integers(1, 15),
    st.floats(0, 1),
    st.floats(0.01, 10),
)
def test_weights_are_a_distribution_over_a_set_that_holds_the_best(values: list[float], bits: int, beta: float, tau: float) -> None:
    scores, present = torch.tensor([values]), torch.tensor([[bool(bits >> k & 1) for k in range(4)]])
    chosen = path_set(scores, present, beta)
    alpha = path_weights(scores, chosen, tau)
    best = scores.masked_fill(~present, -1).argmax()
    assert chosen[0, best] and not bool((chosen & ~present).any())
    assert alpha.sum().item() == pytest.approx(1, abs=1e-5) and bool((alpha[~chosen] == 0).all())


def test_equal_scores_weigh_alike_and_negative_ones_are_refused() -> None:
    even = torch.full((1, 3), 0.3)
    assert path_weights(even, path_set(even, ALL, 1.0), 0.2)[0].tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(InputError, match="below 0"):
        path_set(torch.tensor([[-1.0, -2.0]]), ALL[:, :2], 0.5)


def test_a_missing_path_counts_nowhere() -> None:
    present = torch.tensor([[True, True, False]])
    scores = SCORES.clone().requires_grad_()
    loss = ranking_loss(scores, LOSSES, present)
    assert loss.item() == pytest.approx(ranking_loss(SCORES[:, :2], LOSSES[:, :2], ALL[:, :2]).item(), abs=1e-6)
    loss.sum().backward()
    assert scores.grad is not None and scores.grad[0, 2] == 0 and bool(scores.grad.isfinite().all())
    assert not path_set(torch.tensor([[0.1, 0.2, 9.0]]), present, 0.5)[0, 2]


def test_consistency_is_the_weighted_sum_over_pairs_at_real_tokens() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.2, 0.7]).log()
    logs = torch.stack([torch.stack([p, p]), torch.stack([q, p]), torch.stack([p, q])])[None]  # [1, 3, 2, 3]
    alpha = torch.tensor([[0.5, 0.3, 0.2]])
    whole, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert consistency(logs, alpha, first).item() == pytest.approx((0.15 + 0.06) * 0.253102, abs=1e-6)
    assert consistency(logs, alpha, whole).item() == pytest.approx((0.15 + 0.06 + 0.1 + 0.06) * 0.253102 / 2, abs=1e-6)
    assert consistency(logs[:, :1], torch.ones(1, 1), whole).item() == 0


def test_rank_agreement_leaves_out_missing_paths() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([[10.0, 30.0, 20.0, 99.0]])
    assert rank_agreement(a, b, torch.tensor([[True, True, True, False]])).item() == pytest.approx(0.5)
    assert rank_agreement(a, a * 2, torch.ones(1, 4)).item() == pytest.approx(1)
    assert rank_agreement(a, torch.zeros(1, 4), torch.ones(1, 4)).item() == 0


@pytest.mark.parametrize("attention", [True, False])
def test_metanet_learns_a_table_of_losses(attention: bool) -> None:
    torch.manual_seed(0)
    embeddings, present = torch.randn(6, 4, 8), torch.ones(6, 4, dtype=torch.bool)
    present[0, 3] = False
    table = torch.randn(6, 4).abs()
    net = MetaNet(8, 4, 16, 2, attention)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = ranking_loss(net(embeddings, present), table, present).mean()
        loss.backward()
        optimizer.step()
    scores = net(embeddings, present)
    assert loss.item() < 1e-3 and bool((scores > 0).all())
    assert rank_agreement(scores, -table, present).min().item() > 0.75


def test_no_path_looks_at_a_missing_one() -> None:
    torch.manual_seed(0)
    net, present = MetaNet(8, 4, 16, 2), torch.tensor([[True, True, True, False]])
    embeddings = torch.randn(1, 4, 8)
    changed = embeddings.clone()
    changed[:, 3] += 5
    assert torch.equal(net(embeddings, present)[:, :3], net(changed, present)[:, :3])
    changed[:, 2] += 5
    assert not torch.equal(net(embeddings, present)[:, :2], net(changed, present)[:, :2])


# -- the method ------------------------------------------------------------------------------------------------------


def parts(count: int = 8, **options: Any) -> tuple[MIND, TrainingJob, Batch]:
    model = toy_student(0, 16, 1)
    data = item_data(model, toy_items(questions(0)[0], count, 0), PREFIX)
    method = MIND(**({"dim": 16} | options))
    job = TrainingJob(model.network, None, method, data, TrainingSettings(steps=4, batch_size=count, lr=1e-2), "mind")
    batch = data.batch(torch.arange(count), None)
    torch.manual_seed(0)
    method.prepare(model.network, None, batch, data)
    return method, job, batch


def test_each_loss_trains_its_own_side() -> None:
    method, job, batch = parts()
    for turn, own, other in (("student", job.student, method), ("metanet", method, job.student)):
        method.progress = TrainingProgress(turn=turn)
        terms = method.loss_terms(batch, *method(batch, job.student, None))
        weights = method.loss_weights()
        sum((weights.get(name, 1.0) * term for name, term in terms.items()), torch.zeros(())).backward()
        assert all(p.grad is not None for p in own.parameters()) and all(p.grad is None for p in other.parameters())
        own.zero_grad()


def test_metanets_turn_reads_the_students_pass_or_makes_its_own() -> None:
    method, job, batch = parts()
    method.progress = TrainingProgress(turn="student")
    method(batch, job.student, None)
    method.progress = TrainingProgress(turn="metanet")
    kept = method(batch, job.student, None)[0]
    method._found = None
    again = method(batch, job.student, None)[0]
    assert torch.allclose(kept["losses"], again["losses"]) and torch.allclose(kept["scores"], again["scores"])


def test_one_path_is_plain_fine_tuning() -> None:
    model = toy_student(0, 16, 1)
    items = [replace(item, rationales=item.rationales[:1]) for item in toy_items(questions(0)[0], 8, 0)]
    data = item_data(model, items, PREFIX)
    batch = data.batch(torch.arange(8), None)
    method = MIND(dim=16)
    method.prepare(model.network, None, batch, data)
    method.progress = TrainingProgress(turn="student")
    terms = method.loss_terms(batch, *method(batch, model.network, None))
    ids, mask, response = (batch.labels[name][:, 0] for name in ("ids", "mask", "response"))
    logits = model.network(ids, mask)
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") * response[:, 1:]
    assert terms["sft"].item() == pytest.approx((plain.sum(1) / response.sum(1)).mean().item(), rel=1e-5)
    assert terms["consistency"].item() == 0 and terms["paths"].item() == 1


def test_baselines_weigh_alike_or_by_the_batch() -> None:
    losses = torch.tensor([[0.1, 0.2, 2.0, 0.0]])
    present = torch.tensor([[True, True, True, False]])
    assert MIND(weights="uniform").weights_of(losses, None, present)[0].tolist() == pytest.approx([1 / 3] * 3 + [0])
    alpha = MIND(weights="instant", beta=0.8, tau_student=0.2).weights_of(losses, None, present)[0]
    assert alpha.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5)), 0, 0], abs=1e-6)


def test_the_warm_up_leaves_the_student_as_it_was_and_metanet_lags() -> None:
    job = MIND.tiny_job(0)  # 8 steps, 2 of them warm-up; MetaNet updates every 2 steps
    trainer = Trainer(job)
    assert isinstance(job.method, MIND) and job.method.metanet is not None

    def state() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student, net = trainer.student.state_dict(), job.method.metanet.state_dict()
        return {k: v.clone() for k, v in student.items()}, {k: v.clone() for k, v in net.items()}

    changes = []
    for _ in range(4):
        before = state()
        trainer.advance()
        changes.append(tuple(any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(before, state(), strict=True)))
    assert changes == [(False, False), (False, True), (True, False), (True, True)]


def test_the_filter_damps_an_outlier() -> None:
    method, job, batch = parts(filter=0.9)
    assert method.smoothed.shape == (8, 4) and bool(method.smoothed.isnan().all())
    usual = torch.ones(8, 4)
    assert torch.equal(method._filtered(usual, batch), usual)
    method.after_step(job.student)
    outlier = usual.clone()
    outlier[0, 0] = 11
    found = method._filtered(outlier, batch)
    assert found[0, 0].item() == pytest.approx(2.0) and found[1, 0] == 1
    assert torch.equal(parts()[0]._filtered(outlier, batch), outlier)


def test_training_with_a_filter_and_missing_paths_runs_and_resumes(tmp_path: Path) -> None:
    def job() -> TrainingJob:
        made = MIND.tiny_job(0)
        items = [Item("0 1 2 3 0", "2", ("0 1 3 2 2", None)), Item("1 1 1 1 1", "1", ("1 2 3 0 1", "1 2 3 0 1"))]
        model = toy_student(0, 16, 1)
        data = item_data(model, items, PREFIX)
        made_settings = replace(made.settings, batch_size=2, checkpoint_every=3)
        return TrainingJob(model.network, None, MIND(dim=16, filter=0.9, accumulate=2), data, made_settings, "mind")

    def stop(done: int, steps: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole = train(job())
    with pytest.raises(KeyboardInterrupt):
        train(job(), tmp_path / "run", progress=stop)
    again = train(job(), tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.student.state_dict().values(), again.student.state_dict().values()))


# -- items, tokens, answers ------------------------------------------------------------------------------------------


def test_tokens_of_a_path_and_where_its_answer_is() -> None:
    model = toy_student(0, 16, 1)
    data = item_data(model, [Item("0 1 2 3 0", "2", ("0 1 3", "2")), Item("1 1", "2 3", (None, "3 3"))], PREFIX)
    labels = data.labels
    assert labels["present"].tolist() == [[True, True], [False, True]]
    words = {model.encode(word)[0]: word for word in ("0", "1", "2", "3", "=")}
    for item, path, answer in ((0, 0, ["2"]), (0, 1, ["2"]), (1, 1, ["2", "3"])):
        places = labels["answer_places"][item, path][labels["answer_mask"][item]]
        assert [words[int(labels["ids"][item, path, place + 1])] for place in places] == answer
        response = labels["ids"][item, path][labels["response"][item, path]].tolist()
        assert response[-1] == model.end and words[response[-len(answer) - 2]] == "="
    assert not labels["response"][1, 0].any()
    assert data.inputs["mask"].sum(1).tolist() == [6, 3]


def test_exact_match_needs_the_answer_and_its_end() -> None:
    model = toy_student(0, 16, 1)

    class Script(torch.nn.Module):
        """Writes ``= 2`` and the end after whatever it reads."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.follows = {model.encode("=")[0]: model.encode("2")[0], model.encode("2")[0]: model.end}

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            last = [self.follows.get(int(one), model.encode("=")[0]) for one in ids[:, -1]]
            return torch.nn.functional.one_hot(torch.tensor(last), 12).float()[:, None].expand(-1, ids.shape[1], -1)

    scripted = replace(model, network=Script())
    assert exact_match(scripted, [("0 1", "2"), ("0 1 1", "3"), ("1 1", "2")], PREFIX, 5) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="no question"):
        exact_match(model, [])


def test_the_toy_ends_in_right_answers() -> None:
    pool, held_out = questions(0)
    assert len(pool) == 768 and not {tuple(one) for one in pool.tolist()} & {tuple(one) for one in held_out.tolist()}
    for item in toy_items(pool, 20, 0):
        assert item.rationales[0] is not None and item.rationales[1] is not None
        assert item.rationales[0].split()[-1] == item.answer == item.rationales[1].split()[-1]
        assert question_and_answer(torch.tensor([int(word) for word in item.question.split()]).numpy())[1] == item.answer


def test_files_go_round_and_faults_are_named(tmp_path: Path) -> None:
    items = [Item("q", "a", ("r", None)), Item("p", "b", ("s", "t"))]
    assert read_items(write_items(tmp_path / "items.jsonl", items)) == items
    good = {"question": "q", "answer": "a", "rationales": ["r", "s"]}
    for change, message in (
        ({"rationales": ["r"]}, "2 entries"),
        ({"rationales": [None, ""]}, "at least one text"),
        ({"rationales": "r"}, "list of texts"),
        ({"answer": " "}, "not empty"),
        ({"question": 3}, "a string"),
    ):
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
        with pytest.raises(InputError, match=message) as caught:
            read_items(path)
        assert "bad.jsonl:2" in str(caught.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no line"):
        read_items(tmp_path / "empty.jsonl")


def test_bad_options_and_data_are_refused() -> None:
    for options, message in (({"beta": 1.5}, "beta"), ({"weights": "none"}, "weights"), ({"accumulate": 0}, "accumulate")):
        with pytest.raises(InputError, match=message):
            MIND(**options)
    model = toy_student(0, 16, 1)
    with pytest.raises(InputError, match="model reads 8"):
        item_data(replace(model, max_length=8), [Item("0 1 2 3 0", "2", ("0 1 3 2 2",))], PREFIX)
    with pytest.raises(InputError, match="item 0"):
        item_data(model, [Item("0 1", "1", (None, None))], PREFIX)
    with pytest.raises(InputError, match="no item"):
        item_data(model, [], PREFIX)
    data = item_data(model, [Item("0 1", "1", ("0 1",))], PREFIX)
    data.labels.pop("present")
    with pytest.raises(InputError, match="no paths"):
        train(TrainingJob(model.network, None, MIND(), data, TrainingSettings(steps=1, batch_size=1)))


class Teacher:
    """Answers from a list, in order."""

    name, settings = "stub", {"stub": True}

    def __init__(self, answers: Sequence[str | None]):
        self.answers, self.requests = answers, list[CompletionRequest]()

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        self.requests += requests
        for number, answer in zip(range(len(requests)), self.answers, strict=True):
            yield number, ProgramFailure("down") if answer is None else Completion(answer)


def test_rationales_with_wrong_answers_are_left_out() -> None:
    teacher = Teacher(["because\n#### 4.0", "no idea\n#### 5", "no marker", None, "#### 4", "so\n#### $1,000."])
    found = collect_rationales(teacher, [("2 + 2", "4"), ("10^3", "1000")], perspectives={"a": "A.", "b": "B.", "c": "C."})
    assert found.items == [Item("2 + 2", "4", ("because", None, None)), Item("10^3", "1000", (None, None, "so"))]
    assert found.rejected == {"b: wrong answer": 1, "c: no answer": 1, "a: failed": 1, "b: no answer": 1}
    assert "A. Then" in teacher.requests[0].prompt.text and len({one.seed for one in teacher.requests}) == 6
    assert same_answer("The Cat.", "the cat") and not same_answer("4", "40")


def test_easy_items_are_thinned_and_hard_ones_stay() -> None:
    items = [Item(str(n), "a", ("r",)) for n in range(40)]
    kept = drop_easy(items, [n % 2 == 0 for n in range(40)], 0.5)
    assert {str(n) for n in range(1, 40, 2)} <= {item.question for item in kept} and 20 < len(kept) < 40
    with pytest.raises(InputError, match="marks"):
        drop_easy(items, [True])


def test_what_the_page_shows_runs(tmp_path: Path) -> None:
    model = toy_student(0, 16, 1)
    path = write_items(tmp_path / "items.jsonl", toy_items(questions(0)[0], 8, 0))
    data = item_data(model, read_items(path), PREFIX)
    result = distill(model.network, None, data, MIND(dim=16), steps=2, batch_size=4, lr=1e-3)
    assert "weight_of_path_4" in result.results[0].history[-1]["terms"]
