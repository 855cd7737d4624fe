"""Dynamic contrastive distillation: which negatives are kept, what each sample weighs, and retrieval."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tutelage
from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.networks.pair_matcher import PairMatcher, TokenEmbedding, shallower_matcher
from tutelage.programs.values import Image
from tutelage.sdvp.questions import Question, solve
from tutelage.systems.dcd import (
    DCD,
    CaptionCandidates,
    RetrievalFineTuning,
    caption_losses,
    certainty_weights,
    hard_candidates,
    pairwise_scores,
    pretrained_matcher,
    retrieval_recall,
    score_distance,
)


def matcher(depth: int = 3) -> PairMatcher:
    torch.manual_seed(0)
    return PairMatcher(nn.Identity(), TokenEmbedding(9, 8, 4), 6, 8, dim=16, depth=depth, num_heads=2)


def test_the_caption_is_first_and_negatives_follow_by_score() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [9.0, 1.0, 2.0, 3.0]])
    assert hard_candidates(scores, 2).tolist() == [[0, 1, 3], [0, 3, 2]]
    with pytest.raises(InputError, match="1 to 3"):
        hard_candidates(scores, 4)


@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_kept_places_differ_and_none_left_out_is_harder(seed: int, keep: int) -> None:
    scores = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    kept = hard_candidates(scores, keep)
    for row, places in zip(scores, kept.tolist(), strict=True):
        left = set(range(8)) - set(places)
        assert places[0] == 0 and len(set(places)) == keep + 1
        assert all(row[other] <= row[places[-1]] for other in left)


def test_weights_of_the_hand_case() -> None:
    e, r = certainty_weights(torch.tensor([[10.0, 0.0], [0.0, 0.0]]))
    assert e.tolist() == pytest.approx([7.20e-4, 0.99928], rel=1e-3)
    assert r.tolist() == pytest.approx([0.7308, 0.2692], abs=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 64), st.floats(0.01, 400))
@settings(max_examples=40, deadline=None)
def test_weights_sum_to_one_and_the_teachers_are_bounded(seed: int, size: int, spread: float) -> None:
    scores = spread * torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    e, r = certainty_weights(scores)
    assert e.sum().item() == pytest.approx(1, abs=1e-4) and r.sum().item() == pytest.approx(1, abs=1e-4)
    assert r.max() / r.min() <= math.exp(2 * e.max()) * (1 + 1e-5)


@pytest.mark.parametrize("row", [[0.0, 0.0], [300.0, 0.0], [2000.0, 0.0]])
def test_equal_entropies_weigh_alike_even_where_all_are_zero(row: list[float]) -> None:
    e, r = certainty_weights(torch.tensor([row] * 4))
    assert e.tolist() == pytest.approx([0.25] * 4) and r.tolist() == pytest.approx([0.25] * 4)


def terms(student: torch.Tensor, teacher: torch.Tensor, **options: object) -> dict[str, torch.Tensor]:
    return DCD(**options).loss_terms(Batch(student), {"logits": student}, {"logits": teacher})


def test_each_row_is_weighted_before_the_sum() -> None:
    teacher = torch.tensor([[10.0, 0.0], [0.0, 0.0]])
    assert terms(teacher.clone(), teacher)["kd"] == 0
    _, r = certainty_weights(teacher)
    for row in range(2):
        student = teacher.clone()
        student[row] += 1
        assert terms(student, teacher)["kd"].item() == pytest.approx(r[row].item())


def test_the_task_loss_weighs_by_the_teachers_entropy() -> None:
    teacher, student = torch.tensor([[10.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, -1.0], [-2.0, 0.5]])
    e, _ = certainty_weights(teacher)
    assert terms(student, teacher)["task"].item() == pytest.approx((e * caption_losses(student).mean(1)).sum().item())
    assert caption_losses(student)[0].tolist() == pytest.approx([math.log1p(math.exp(-1))] * 2)


def test_the_ratio_fades_a_sample_that_the_student_can_do() -> None:
    teacher, good, bad = torch.tensor([[2.0, 0.0]]), torch.tensor([[12.0, 0.0]]), torch.tensor([[-8.0, 0.0]])
    low, high = (terms(student, teacher, certainty="ratio")["kd"].item() for student in (good, bad))
    assert low < 1e-2 * high  # both miss the teacher's score by 10
    assert DCD(certainty="ratio").loss_weights()["task"] == 1


def test_temperature_and_divergence() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert score_distance(student, teacher, 3.0).item() == pytest.approx(0.5)  # T cancels in a regression
    wanted = math.log(0.5) - 0.5 * sum(torch.tensor([1.0, 0.0]).log_softmax(0).tolist())
    assert score_distance(student, teacher, kind="kl").item() == pytest.approx(wanted, rel=1e-5)


def candidates(count: int = 24, negatives: int = 7) -> CaptionCandidates:
    rng = torch.Generator().manual_seed(1)
    return CaptionCandidates(
        torch.randn(count, 5, 6, generator=rng), torch.randint(1, 9, (count, 4), generator=rng), None, negatives
    )


def test_the_student_sees_the_kept_pairs_alone_and_scores_stay_aligned() -> None:
    data, teacher = candidates(), matcher().eval()
    job = TrainingJob(matcher(), teacher, DCD(keep=3), data)
    batch = data.batch(torch.arange(6), torch.arange(6))
    with torch.no_grad():
        student, kept = job.method(batch, copy.deepcopy(teacher), job.teacher)
    assert student["logits"].shape == (6, 4)  # B (K + 1) pairs of B (N + 1)
    torch.testing.assert_close(student["logits"], kept["logits"])  # the same network gives the same scores, in the same order


def test_alpha_0_reads_no_score_and_alpha_1_no_label() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    assert DCD(alpha=0.0).loss_weights()["kd"] == 0
    assert DCD(alpha=1.0, matching=0.0).loss_weights() == {"kd": 1.0, "task": 0.0, "matching": 0.0}
    uniform = {"certainty": "uniform"}
    assert terms(student, teacher, **uniform)["task"] == terms(student, teacher + 5 * torch.rand(4, 3), **uniform)["task"]


def test_the_student_is_a_copy_of_the_chosen_layers() -> None:
    teacher = matcher(6)
    student = shallower_matcher(teacher, layers=[0, 3, 5])
    for place, layer in enumerate([0, 3, 5]):
        one, other = student.text_blocks[place].mlp, teacher.text_blocks[layer].mlp
        assert all(torch.equal(a, b) and a is not b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(student.head.weight, teacher.head.weight)
    before = copy.deepcopy(teacher.state_dict())
    encoder = copy.deepcopy(student.text_encoder.state_dict())
    trained = train(TrainingJob(student, teacher, DCD(keep=3), candidates(), TrainingSettings(steps=3, batch_size=8))).student
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, encoder[name]) for name, value in trained.text_encoder.state_dict().items())
    assert len(shallower_matcher(teacher).text_blocks) == 3


def test_random_captions_are_of_other_images_and_repeat_by_seed() -> None:
    ids = torch.arange(30).view(15, 2)
    image_of = torch.arange(15) // 3
    data = CaptionCandidates(torch.arange(5.0)[:, None], ids, negatives=12, image_of=image_of)
    batch = data.batch(torch.arange(15), torch.arange(15))
    drawn = batch.inputs["input_ids"][..., 0] // 2
    for caption, row in enumerate(drawn.tolist()):
        assert row[0] == caption and len(set(row)) == 13
        assert all(image_of[other] != image_of[caption] for other in row[1:])
    again = data.batch(torch.arange(15), torch.arange(15)).inputs["input_ids"]
    other = data.batch(torch.arange(15), torch.arange(15) + 99).inputs["input_ids"]
    assert torch.equal(again, batch.inputs["input_ids"]) and not torch.equal(other, again)
    with pytest.raises(InputError, match="1 to 12"):
        CaptionCandidates(torch.arange(5.0)[:, None], ids, negatives=13, image_of=image_of)
    with pytest.raises(InputError, match="outside"):
        CaptionCandidates(torch.arange(4.0)[:, None], ids, image_of=image_of)


def test_bad_batches_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="keep=9"):
        Trainer(TrainingJob(matcher(), matcher(), DCD(keep=9), candidates()))
    for options in ({"alpha": 2.0}, {"temperature": 0.0}, {"certainty": "often"}, {"distance": "l1"}, {"keep": 0}):
        with pytest.raises(InputError):
            DCD(**options)
    with pytest.raises(InputError, match="texts for each image"):
        matcher()(torch.randn(2, 5, 6), torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match="image_dim=6"):
        matcher()(torch.randn(2, 5, 7), torch.ones(2, 3, 4, dtype=torch.long))


def test_recall_counts_ties_by_halves_and_several_right_items() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    assert retrieval_recall(scores, at=(1, 2, 3)) == pytest.approx({1: 50.0, 2: 200 / 3, 3: 100.0})
    right = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 0]])
    assert retrieval_recall(scores, right, at=(1,))[1] == pytest.approx(50.0)  # 0, 1/2, 1
    with pytest.raises(InputError, match="no right item"):
        retrieval_recall(scores, torch.zeros(3, 3))


def test_all_pairs_are_scored_as_one_by_one() -> None:
    network, data = matcher(), candidates(5, 2)
    ids, images = data.captions.inputs["input_ids"], data.images.inputs
    scores = pairwise_scores(network, images, ids, batch_size=2)
    with torch.no_grad():
        alone = network.eval()(images[3:4], ids[None, 4:5])["logits"]
    torch.testing.assert_close(scores[3, 4], alone[0, 0])


def test_padding_does_not_change_a_score() -> None:
    network = matcher().eval()
    images, ids = torch.randn(1, 5, 6), torch.tensor([[[1, 2, 0, 0]], [[1, 2, 7, 8]]])
    mask = torch.tensor([[[1, 1, 0, 0]]])
    with torch.no_grad():
        one, other = (network(images, ids[row : row + 1], mask)["logits"] for row in range(2))
    torch.testing.assert_close(one, other)


def test_encoders_of_transformers_by_name(tmp_path: Path) -> None:
    kit = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    models = {
        "vit": kit.ViTModel(kit.ViTConfig(image_size=8, patch_size=4, **size)),
        "dinov2": kit.Dinov2Model(kit.Dinov2Config(image_size=8, patch_size=4, **size)),
        "bert": kit.BertModel(kit.BertConfig(vocab_size=20, max_position_embeddings=8, **size)),
        "distilbert": kit.DistilBertModel(
            kit.DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=8)
        ),
        "clip": kit.CLIPModel(
            kit.CLIPConfig(
                text_config={"vocab_size": 20, "max_position_embeddings": 8, **size},
                vision_config={"image_size": 8, "patch_size": 4, **size},
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    rng = torch.Generator().manual_seed(0)
    images, ids = torch.randn(8, 3, 8, 8, generator=rng), torch.randint(1, 20, (8, 6), generator=rng)
    for image, text in (("vit", "bert"), ("dinov2", "distilbert"), ("clip", "clip")):
        teacher = pretrained_matcher(f"hf:{tmp_path / image}", f"hf:{tmp_path / text}", dim=16, depth=2, num_heads=2)
        data = CaptionCandidates(images, ids, negatives=3)
        quick = TrainingSettings(steps=2, batch_size=4)
        teacher = train(TrainingJob(teacher, None, RetrievalFineTuning(), data, quick)).student
        student = train(TrainingJob(shallower_matcher(teacher), teacher, DCD(keep=2), data, quick)).student
        assert pairwise_scores(student, images, ids).shape == (8, 8)
    with pytest.raises(InputError, match="folder"):
        pretrained_matcher("hf:/no/such/folder", f"hf:{tmp_path / 'bert'}")


@pytest.mark.parametrize(("dim", "std"), [(64, 0.0693), (768, 0.02)])
def test_layers_start_in_proportion_to_their_width(dim: int, std: float) -> None:
    torch.manual_seed(0)
    matcher = PairMatcher(nn.Identity(), TokenEmbedding(9, 8, 6), 4, 8, dim=dim, depth=1)
    block = matcher.text_blocks[0]
    assert block.attention.query.weight.std().item() == pytest.approx(std, rel=0.05)


def test_a_matcher_answers_as_a_module_of_programs() -> None:
    torch.manual_seed(0)
    matcher = PairMatcher(nn.Identity(), TokenEmbedding(9, 8, 3), 3, 8, dim=16, depth=1).eval()
    words = {"red": 1, "blue": 2, "left": 3}

    @tutelage.module
    def MATCHES(image: Image, statement: str) -> float:
        """How well a statement of three words fits the mean colour of the image."""
        ids = torch.tensor([[[words[word] for word in statement.split()]]])
        pixels = torch.tensor(image.bytes.mean((1, 2)) / 255, dtype=torch.float32)[None, None]
        return matcher(pixels, ids)["logits"].item()

    image = Image(np.full((3, 4, 4), 90, np.uint8))
    program = "ANSWER0=MATCHES(image=IMAGE,statement='red left blue')\nFINAL_RESULT=RESULT(var=ANSWER0)"
    question = Question("q", "own", {"IMAGE": image}, "Is red left of blue?", {"visprog": program})
    trace = solve([question], {**symbolic_modules(), "MATCHES": MATCHES})[0]
    colour = torch.full((1, 1, 3), 90 / 255)
    assert trace.answer == pytest.approx(float(matcher(colour, torch.tensor([[[1, 3, 2]]]))["logits"]))
