"""Groups of the optimiser: what decay spares, rates that fall by layer, decay that follows a curve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage import registry
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.optim import decay_exempt_names, layer_numbers
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError

from .toy import Distil, Net, bits, lesson, samples


class Vit(nn.Module):
    """Names as networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 5, 4))
        self.tokens = nn.ParameterDict({"mask": nn.Parameter(torch.zeros(1, 4))})
        self.patch_embed, self.words, self.token_embedding = nn.Linear(4, 4), nn.Embedding(7, 4), nn.Embedding(7, 4)
        self.position_embeddings = nn.Embedding(5, 4)
        self.position_wise = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)
        self.special = nn.Parameter(torch.zeros(2, 2))

    def no_weight_decay(self) -> set[str]:
        return {"special"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x) + self.cls_token[0] + self.pos_embed[0, 0]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gamma = nn.LayerNorm(4), nn.Parameter(torch.ones(4))
        self.attention_biases = nn.Parameter(torch.zeros(2, 9))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * self.mlp(self.norm(x))


def test_what_decay_spares() -> None:
    network = Vit()
    spared = decay_exempt_names(network, ("head.*",))
    decayed = {name for name, _ in network.named_parameters()} - spared
    matrices = {f"blocks.{i}.mlp.{j}.weight" for i in range(3) for j in (0, 2)}
    others = {"patch_embed.weight", "words.weight", "token_embedding.weight", "position_wise.weight"}
    assert decayed == matrices | others
    assert {"cls_token", "pos_embed", "tokens.mask", "position_embeddings.weight", "special", "head.weight"} <= spared


def test_layers_are_numbered_as_the_published_rule_has_them() -> None:
    numbers = layer_numbers(Vit())
    assert numbers["cls_token"] == numbers["patch_embed.weight"] == numbers["blocks.0.gamma"] == 0
    assert numbers["blocks.1.mlp.0.weight"] == 1
    assert numbers["blocks.2.norm.bias"] == numbers["norm.weight"] == numbers["head.weight"] == 2
    with pytest.raises(InputError, match="no list of blocks"):
        layer_numbers(Net())


def groups_of(made: TrainingJob) -> dict[str, tuple[float, float]]:
    """(factor on the rate, decay) of each parameter in the first step."""
    trainer = Trainer(made, check=False)
    made.student.train()
    trainer.advance()
    names = {id(parameter): name for name, parameter in trainer.parameters.items()}
    return {
        names[id(p)]: (group["lr"] / made.settings.lr, group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }


def vit_job(method: object = None, **settings: object) -> TrainingJob:
    told = {"steps": 5, "batch_size": 8, "lr": 0.01, "weight_decay": 0.1, "schedule": "constant"} | settings
    made = TrainingJob(Vit(), None, method or Supervised(), samples(), TrainingSettings(**told), task="classification")
    return made


def test_the_settings_divide_the_groups() -> None:
    plain = groups_of(vit_job(decay_exempt=False))
    assert set(plain.values()) == {(1.0, 0.1)}
    assert groups_of(vit_job()) == plain | {"student.special": (1.0, 0.0)}, "what the network itself names"
    found = groups_of(vit_job(decay_exempt=True, layer_decay=0.5))
    assert found["student.patch_embed.weight"] == pytest.approx((0.25, 0.1))
    assert found["student.blocks.1.gamma"] == pytest.approx((0.5, 0.0))
    assert found["student.head.weight"] == pytest.approx((1.0, 0.1)) and found["student.head.bias"] == pytest.approx((1.0, 0.0))
    assert found.keys() == plain.keys()


def test_a_method_names_more_and_its_own_groups_are_kept() -> None:
    class Own(Supervised):
        no_weight_decay = ("student.head.*",)

        def groups(self, student):
            head = list(student.head.parameters())
            rest = [p for name, p in student.named_parameters() if not name.startswith("head")]
            return [{"params": head, "lr_scale": 2.0}, {"params": rest}]

    found = groups_of(vit_job(Own(), decay_exempt=True, layer_decay=0.5))
    assert found["student.head.weight"] == pytest.approx((2.0, 0.0))
    assert found["student.blocks.0.mlp.0.weight"] == pytest.approx((0.25, 0.1))


def test_decay_follows_half_a_cosine_and_spares_what_it_spares() -> None:
    made = vit_job(weight_decay=0.1, weight_decay_end=0.3, decay_exempt=True, steps=4)
    trainer = Trainer(made, check=False)
    seen = []
    for _ in range(4):
        trainer.advance()
        seen.append(sorted({group["weight_decay"] for group in trainer.optimizer.param_groups}))
    assert seen[0] == pytest.approx([0.0, 0.1]) and seen[2] == pytest.approx([0.0, 0.2]) and all(one[0] == 0 for one in seen)


def test_a_decay_of_biases_is_the_only_difference() -> None:
    """With decay and no gradient, only what is not spared shrinks."""

    class Still(Distil):
        def loss_terms(self, batch, student, teacher):
            return {"soft": 0.0 * student["logits"].sum(), "hard": 0.0 * student["logits"].sum()}

    def made(**more: object) -> TrainingJob:
        return lesson(Still(), Net(norm=True), weight_decay=0.5, optimizer="sgd", momentum=0.0, steps=3, **more)

    exempt, full = made(decay_exempt=True), made()
    before = {name: value.clone() for name, value in exempt.student.named_parameters()}
    train(exempt), train(full)
    for name, value in exempt.student.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim < 2)
    assert all(not torch.equal(value, before[name]) for name, value in full.student.named_parameters() if before[name].any())


@pytest.mark.parametrize("name", ["convnext", "cvt", "spartan", "tinyvit"])
def test_systems_whose_cards_ask_for_it(name: str) -> None:
    made = registry.find(name).target.tiny_job(0)
    network = made.student
    spared = decay_exempt_names(network)
    assert spared and len(spared) < len(dict(network.named_parameters()))
    for key, parameter in network.named_parameters():
        if parameter.ndim < 2 or key.endswith(("gamma", "token", "positions", "attention_biases")):
            assert key in spared, key
        elif key.rpartition(".")[2] == "weight":
            assert key not in spared, key


def test_decay_and_layers_change_nothing_where_they_are_off() -> None:
    first, second = lesson(), lesson(decay_exempt=False, layer_decay=1.0)
    assert bits(train(first).student) == bits(train(second).student)
