from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.outputs import Terms
from tutelage.distillation.plan import PlanResult, train_plan
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed
from tutelage.systems.minilm import (
    MiniLM,
    TinyEncoder,
    needs_assistant,
    plan_with_assistant,
    projections,
    relation_divergence,
    relation_logits,
)


def loss(method: MiniLM, student: nn.Module, teacher: nn.Module, tokens: Tensor, mask: Tensor) -> Terms:
    batch, live = Batch({"input_ids": tokens, "attention_mask": mask}), NetworkTeacher(teacher)
    with torch.no_grad():
        method.prepare(student, live, batch, TensorData(batch.inputs))
    return method.loss_terms(batch, *method(batch, student, live))


def encoder(seed: int, width: int = 16, heads: int = 4) -> TinyEncoder:
    return build_with_seed(lambda: TinyEncoder(20, width, 2, heads, std=0.3), seed)


def tokens(seed: int, count: int = 3, length: int = 7) -> Tensor:
    return torch.randint(1, 20, (count, length), generator=torch.Generator().manual_seed(seed))


def test_an_exact_copy_has_no_loss() -> None:
    teacher, student, ids = encoder(0), encoder(0), tokens(0)
    terms = loss(MiniLM(), student, teacher, ids, torch.ones_like(ids))
    assert all(abs(value.item()) < 1e-6 for value in terms.values())
    assert all(value.item() > 1e-3 for value in loss(MiniLM(), encoder(1), teacher, ids, torch.ones_like(ids)).values())


def test_hand_value_of_the_value_relation() -> None:
    mask, zero = torch.ones(1, 2), torch.zeros(1, 2, 2)
    theirs = relation_logits(torch.eye(2)[None], torch.eye(2)[None], 1, mask)
    torch.testing.assert_close(theirs.exp()[0, 0, 0], torch.tensor([0.66976, 0.33024]), atol=1e-5, rtol=0)
    value = relation_divergence(theirs, relation_logits(zero, zero, 1, mask), mask)
    assert value.item() == pytest.approx(0.0587998, abs=1e-6)
    assert relation_divergence(relation_logits(zero, zero, 1, mask), relation_logits(zero, zero, 1, mask), mask).item() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gives_the_mean_of_the_single_sequences(side: str) -> None:
    rng = torch.Generator().manual_seed(0)
    lengths, heads = (3, 6, 5), 2
    parts = [[torch.randn(1, n, 8, generator=rng) for _ in range(4)] for n in lengths]

    def value(q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, mask: Tensor) -> Tensor:
        return relation_divergence(relation_logits(q, k, heads, mask), relation_logits(q2, k2, heads, mask), mask).mean()

    singles = torch.stack([value(*part, torch.ones(1, n)) for part, n in zip(parts, lengths)])
    padded = [torch.full((3, 6, 8), 50.0) for _ in range(4)]
    mask = torch.zeros(3, 6)
    for row, (part, n) in enumerate(zip(parts, lengths)):
        place = slice(6 - n, 6) if side == "left" else slice(0, n)
        mask[row, place] = 1
        for target, source in zip(padded, part):
            target[row, place] = source[0]
    torch.testing.assert_close(value(*padded, mask), singles.mean())


def test_value_relation_does_not_see_a_rotation_but_the_head_width() -> None:
    rng = torch.Generator().manual_seed(1)
    v, mask = torch.randn(2, 5, 8, generator=rng), torch.ones(2, 5)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng)).Q
    turned = (v.unflatten(-1, (2, 4)) @ turn).flatten(2)
    torch.testing.assert_close(relation_logits(turned, turned, 2, mask), relation_logits(v, v, 2, mask))
    wide = torch.cat([v.unflatten(-1, (2, 4)), torch.zeros(2, 5, 2, 4)], -1).flatten(2)  # zero columns in each head
    half = v / 2**0.25  # the same dot products over sqrt(2)
    torch.testing.assert_close(relation_logits(wide, wide, 2, mask), relation_logits(half, half, 2, mask))


def test_direction_and_finiteness() -> None:
    rng, mask = torch.Generator().manual_seed(2), torch.ones(2, 5)
    one, other = (relation_logits(*(3 * torch.randn(2, 5, 8, generator=rng) for _ in range(2)), 2, mask) for _ in range(2))
    assert (relation_divergence(one, other, mask) - relation_divergence(other, one, mask)).abs().max() > 1e-3
    flat = relation_logits(torch.zeros(2, 5, 8), torch.zeros(2, 5, 8), 2, mask)
    assert bool(relation_divergence(one, flat, mask).isfinite().all())


def test_a_sequence_of_padding_alone_gives_no_nan() -> None:
    q = torch.randn(1, 4, 8, requires_grad=True)
    value = relation_divergence(
        relation_logits(q.detach(), q.detach(), 2, torch.zeros(1, 4)),
        relation_logits(q, q, 2, torch.zeros(1, 4)),
        torch.zeros(1, 4),
    )
    value.sum().backward()
    assert value.abs().max() == 0 and bool(q.grad.isfinite().all())


def test_gradients_end_at_the_tapped_projections() -> None:
    trainer = Trainer(MiniLM.tiny_job(0))
    trainer.advance()
    assert trainer.parameters_without_gradient == ()
    graded = {name for name, p in trainer.student.named_parameters() if p.grad is not None}
    for name, parameter in trainer.student.named_parameters():
        if name not in graded:
            continue
        size = parameter.grad.abs().max().item()
        if name.endswith("key.bias"):
            assert size < 1e-6, name  # it shifts whole rows of a softmax
        else:
            assert size > 0, name
    assert {"blocks.1.attention.query.weight", "blocks.1.attention.value.bias", "blocks.0.mlp.0.weight"} <= graded
    idle = {name.removeprefix("student.") for name in trainer.method.unused_parameters}
    assert {"blocks.1.attention.out.weight", "blocks.1.mlp.2.bias", "norm.weight"} <= idle
    assert graded | idle == {name for name, _ in trainer.student.named_parameters()} and not graded & idle
    assert all(p.grad is None for p in trainer.teacher.network.parameters())


def test_unequal_heads_need_relation_heads() -> None:
    with pytest.raises(InputError, match="relation_heads"):
        MiniLM(student_heads=2, teacher_heads=4)
    ids = tokens(3)
    terms = loss(
        MiniLM(student_heads=2, teacher_heads=4, relation_heads=8),
        encoder(0, 16, 2),
        encoder(1, 32, 4),
        ids,
        torch.ones_like(ids),
    )
    assert all(value.item() > 0 for value in terms.values())
    with pytest.raises(InputError, match="do not divide"):
        loss(MiniLM(relation_heads=5), encoder(0), encoder(1), ids, torch.ones_like(ids))


def test_the_generalisation_with_as_many_heads_is_the_same() -> None:
    ids = tokens(4)
    plain = loss(MiniLM(), encoder(0), encoder(1, 32), ids, torch.ones_like(ids))
    general = loss(MiniLM(relation_heads=4), encoder(0), encoder(1, 32), ids, torch.ones_like(ids))
    assert plain.keys() == general.keys() == {"attention", "value"}
    assert all(plain[name].item() == pytest.approx(general[name].item(), abs=1e-6) for name in plain)
    method = MiniLM(relations=(("q", "q", 0.5), ("k", "k", 2.0)))
    assert set(loss(method, encoder(0), encoder(1), ids, torch.ones_like(ids))) == {"qq", "kk"}
    assert method.loss_weights() == {"qq": 0.5, "kk": 2.0}


class Fused(nn.Module):
    """One attention whose projections are one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv = nn.Embedding(20, 16), nn.Linear(16, 48)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.qkv(self.words(input_ids))


def test_a_fused_projection_is_split() -> None:
    student, teacher, ids = build_with_seed(Fused, 0), encoder(1), tokens(5)
    terms = loss(MiniLM(student=("qkv",)), student, teacher, ids, torch.ones_like(ids))
    weight = student.qkv.weight.chunk(3)
    x = student.words(ids)
    q, k = (x @ part.T + bias for part, bias in zip(weight[:2], student.qkv.bias.chunk(3)[:2]))
    mask = torch.ones_like(ids)
    live = NetworkTeacher(teacher, taps=projections("encoder", 1))
    said = live(Batch({"input_ids": ids, "attention_mask": mask}))
    theirs = relation_logits(said["blocks.1.attention.query"], said["blocks.1.attention.key"], 4, mask)
    expected = relation_divergence(theirs, relation_logits(q, k, 4, mask), mask).mean()
    torch.testing.assert_close(terms["attention"], expected)


def test_the_trainer_leaves_the_teacher_in_eval_mode() -> None:
    lesson = MiniLM.tiny_job(0)
    trainer = Trainer(lesson)
    trainer.method.train()
    trainer.advance()
    assert not trainer.teacher.network.training
    assert trainer.method.train() is trainer.method


def test_when_an_assistant_is_used() -> None:
    assert needs_assistant((12, 768), (6, 384)) == (12, 384)
    assert needs_assistant((12, 768), (12, 384)) is None
    assert needs_assistant((12, 768), (6, 768)) is None


def test_names_of_projections() -> None:
    assert projections("bert", 11, "bert.")[0] == "bert.encoder.layer.11.attention.self.query"
    with pytest.raises(InputError, match="did you mean"):
        projections("brt", 0)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "ViT"])
def test_projections_are_where_transformers_has_them(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**SIZES, **({} if kind == "ViT" else {"vocab_size": 20}))
    network = getattr(transformers, f"{kind}Model")(config)
    old = int(transformers.__version__.partition(".")[0]) < 5
    name = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "ViT": "vit-4" if old else "vit"}[kind]
    assert all(isinstance(network.get_submodule(found), nn.Linear) for found in projections(name, 1))


def test_a_bert_of_transformers_teaches_a_narrower_one() -> None:
    transformers = pytest.importorskip("transformers")

    def bert(width: int, layers: int, seed: int) -> nn.Module:
        sizes = SIZES | {"hidden_size": width, "num_hidden_layers": layers, "hidden_dropout_prob": 0.0}
        return build_with_seed(
            lambda: transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes), add_pooling_layer=False), seed
        )

    ids = tokens(6)
    data = TensorData({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    method = MiniLM(teacher=projections("bert", 1), student=projections("bert", 0), teacher_heads=2, student_heads=2)
    student = bert(8, 1, 0)
    made = TrainingJob(student, bert(16, 2, 1), method, data, TrainingSettings(steps=30, batch_size=len(ids), lr=1e-2, log_every=1))
    terms = [record["terms"] for record in train(made).history]
    assert terms[-1]["attention"] < terms[0]["attention"] and terms[-1]["value"] < terms[0]["value"]


def test_no_data_without_tokens() -> None:
    with pytest.raises(InputError):
        TrainingJob(encoder(0), encoder(1), MiniLM(), TensorData({"input_ids": torch.empty(0, 4)}), TrainingSettings(steps=1))


def test_distillation_through_an_assistant_is_a_plan() -> None:
    job = MiniLM.tiny_job(0)
    teacher = build_with_seed(lambda: TinyEncoder(20, 16, 2, 4, std=0.2), 0, "teacher")

    def build(layers: int, width: int) -> TinyEncoder:
        return TinyEncoder(20, width, layers, 4, std=0.2)

    through = train_plan(plan_with_assistant(teacher, ((2, 16), (1, 8)), build, job.data, job.settings))
    assert [entry["uses"] for entry in through.provenance] == [{}, {"assistant": ["teacher"]}]
    assistant = through.results["assistant"].student
    assert (len(assistant.blocks), assistant.words.embedding_dim) == (2, 8)
    assert (len(through.student.blocks), through.student.words.embedding_dim) == (1, 8)
    alone = train_plan(plan_with_assistant(teacher, ((2, 16), (2, 8)), build, job.data, job.settings))
    assert list(alone.results) == ["student"]


def test_the_plan_of_the_page_runs_with_a_bert_and_goes_on_where_it_was(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def build(layers: int, width: int) -> nn.Module:
        sizes = SIZES | {"hidden_size": width, "num_hidden_layers": layers, "hidden_dropout_prob": 0.0}
        return transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes), add_pooling_layer=False)

    teacher = TinyEncoder(20, 16, 2, 2, std=0.2)  # a network of another kind than the students
    ids = tokens(0, 8)
    texts = TensorData({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    settings, names = TrainingSettings(steps=2, batch_size=4), partial(projections, "bert")
    more = {"teacher_names": partial(projections, "encoder"), "student_heads": 2, "teacher_heads": 2}

    def run() -> PlanResult:
        return train_plan(plan_with_assistant(teacher, ((2, 16), (1, 8)), build, texts, settings, names, **more), tmp_path)

    done = run()
    assert [entry["job"] for entry in done.provenance] == ["assistant", "student"]
    assert done.student.config.hidden_size == 8 and done.student.config.num_hidden_layers == 1
    assert (tmp_path / "assistant" / "student.safetensors").exists()
    again = run()  # both jobs are read back, none is trained
    assert all(torch.equal(value, again.student.state_dict()[name]) for name, value in done.student.state_dict().items())
    assert again.provenance[1]["teacher"] == done.provenance[1]["teacher"] != done.provenance[0]["teacher"]
