import copy
import math

import pytest
import torch
from torch import nn

from tutelage.errors import InputError
from tutelage.networks.gradient_reversal import (
    Discriminator,
    cascade_loss,
    domain_loss,
    reversal_scale,
    reverse_gradient,
)
from tutelage.networks.layer_copy import copy_layers, spread_layers
from tutelage.networks.lora import add_lora, lora_parameters, merge_lora, unmerge_lora
from tutelage.networks.token_injection import TokenInjector
from tutelage.networks.two_towers import CosineHead, MiniCLIP, TextTower, class_vectors, contrastive_loss
from tutelage.networks.vit import VisionTransformer


def _conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 5))


def _randomize(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters(network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("blocked", [False, True])
def test_lora_starts_at_the_base_and_merges_to_the_same_outputs(blocked):
    base = _conv_net()
    keys = {name: value.shape for name, value in base.state_dict().items()}
    network, x = copy.deepcopy(base), torch.randn(2, 3, 6, 6)
    names = add_lora(network, rank=2, alpha=4, generator=torch.Generator().manual_seed(1), blocked=blocked)
    assert names == ["0", "2", "4"] and torch.equal(network(x), base(x))
    _randomize(network)
    before = network(x)
    assert not torch.allclose(before, base(x), atol=1e-3)
    deltas = merge_lora(network)
    assert torch.allclose(network(x), before, atol=1e-5)
    assert {name: value.shape for name, value in network.state_dict().items()} == keys
    unmerge_lora(network, deltas)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, base.state_dict()[name], atol=1e-6)
    with pytest.raises(InputError, match="no layer has"):
        merge_lora(network)


def test_a_copy_merges_without_its_original():
    network, x = _conv_net(), torch.randn(2, 3, 6, 6)
    add_lora(network, blocked=True)
    _randomize(network)
    merged = copy.deepcopy(network)
    merge_lora(merged)
    assert torch.allclose(network(x), merged(x), atol=1e-5) and len(lora_parameters(network)) == 6
    merge_lora(network)


def test_lora_trains_the_named_layers_alone_and_counts_as_the_paper_does():
    network = _conv_net()
    add_lora(network, ["0"], rank=2, blocked=True)
    learning = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in lora_parameters(network)}
    assert sum(p.numel() for p in learning) == 2 * 3 * (3 * 3 + 6 * 3)  # r k (i k + o k)
    update = network[0].parametrizations.weight[0]
    _randomize(network)
    assert int(torch.linalg.matrix_rank(update.up @ update.down)) <= 6
    frozen = copy.deepcopy(network[2].weight)
    network(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert network[0].parametrizations.weight.original.grad is None and torch.equal(frozen, network[2].weight)
    assert all(float(p.grad.abs().sum()) > 0 for p in learning)


def test_lora_refuses_what_it_cannot_do():
    network = _conv_net()
    with pytest.raises(InputError, match="'head' matches no"):
        add_lora(network, ["head"])
    with pytest.raises(InputError, match="at least 1"):
        add_lora(network, rank=0)
    add_lora(network, ["4"])
    with pytest.raises(InputError, match="already"):
        add_lora(network, ["4"])
    tied = nn.Module()
    tied.a, tied.b = nn.Linear(3, 3), nn.Embedding(3, 3)
    tied.b.weight = tied.a.weight
    with pytest.raises(InputError, match="weight of its own"):
        add_lora(tied)


def _vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(8, 4, dim=16, depth=3, in_chans=1).eval()


def test_injected_tokens_are_replaced_layer_by_layer_and_leave_no_trace():
    vit, images = _vit(), torch.randn(2, 1, 8, 8)
    plain = vit(images)
    injector = TokenInjector(vit.blocks, 4, 16, depth=2, generator=torch.Generator().manual_seed(0), std=1.0)
    lengths = []
    handles = [block.register_forward_hook(lambda *args: lengths.append(args[2].shape[1])) for block in vit.blocks]
    with injector:
        prompted = vit(images)
    assert lengths[:2] == [9, 9] and prompted.shape == plain.shape
    assert not torch.allclose(prompted, plain, atol=1e-4) and torch.equal(vit(images), plain)
    for handle in handles:
        handle.remove()
    # what the first block makes of its own tokens goes no further: the second block begins with its own
    seen = []
    with injector:
        second = vit.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        vit(images)
    second.remove()
    assert seen[0].shape == (2, 9, 16) and torch.equal(seen[0][:, -4:], injector.tokens[1].expand(2, -1, -1))
    assert [name for name, _ in injector.named_parameters()] == ["tokens"]


def test_injected_tokens_at_the_front_and_carried_to_the_end():
    vit, images = _vit(), torch.randn(2, 1, 8, 8)
    front = TokenInjector(vit.blocks, 2, 16, position=0, drop=False, generator=torch.Generator().manual_seed(0))
    outputs = []
    handle = vit.blocks[-1].register_forward_hook(lambda *args: outputs.append(args[2]))
    with front:
        states = vit.embed(images)
        for block in vit.blocks:
            states = block(states)
    handle.remove()
    assert outputs[0].shape == (2, 6, 16)
    states.sum().backward()
    assert float(front.tokens.grad.abs().sum()) > 0
    with pytest.raises(InputError, match="4 of 3 blocks"):
        TokenInjector(vit.blocks, 1, 16, depth=4)


def test_reversed_gradient_is_the_negative_times_the_scale():
    x = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(4, 3)
    out = reverse_gradient(x, 0.5)
    assert torch.equal(out, x)
    (out * weight).sum().backward()
    assert torch.equal(x.grad, -0.5 * weight)
    assert reversal_scale(0) == 0 and reversal_scale(1) == pytest.approx(1, abs=1e-3)
    assert reversal_scale(0.1, 2) == pytest.approx(2 * math.tanh(0.5))


def test_discriminator_learns_while_the_features_unlearn():
    torch.manual_seed(0)
    net = Discriminator(3)
    honest = copy.deepcopy(net)
    honest.reverse = False
    domains = torch.tensor([0, 0, 1, 1])
    x, y = (torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    domain_loss(net(x), domains).backward()
    domain_loss(honest(y), domains).backward()
    assert torch.equal(x.grad, -y.grad)
    for a, b in zip(net.parameters(), honest.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_domains_weigh_alike_and_layers_are_averaged():
    logits = torch.tensor([[2.0, 0], [0, 0], [0, 0], [0, 1]])
    domains = torch.tensor([0, 1, 1, 1])
    each = torch.nn.functional.cross_entropy(logits, domains, reduction="none")
    assert float(domain_loss(logits, domains)) == pytest.approx(float((each[0] + each[1:].mean()) / 2))
    assert float(domain_loss(torch.zeros(4, 6, 2), domains)) == pytest.approx(math.log(2))
    layers = [torch.randn(4, 5, 3), torch.randn(4, 2, 3)]
    net = Discriminator(3)
    mean = (domain_loss(net(layers[0]), domains) + domain_loss(net(layers[1]), domains)) / 2
    assert float(cascade_loss(net, layers, domains).detach()) == pytest.approx(float(mean.detach()), rel=1e-6)
    with pytest.raises(InputError, match="for 4 samples"):
        domain_loss(torch.zeros(3, 2), domains)


def test_contrastive_loss_by_hand_and_without_false_negatives():
    n = 5
    unit = torch.eye(n)
    wanted = math.log(1 + (n - 1) * math.exp(-5))
    assert float(contrastive_loss(unit, unit, 5.0)) == pytest.approx(wanted, rel=1e-4)
    a, b = (torch.nn.functional.normalize(torch.randn(4, 3), dim=-1) for _ in range(2))
    assert float(contrastive_loss(a, b, 5.0)) == pytest.approx(float(contrastive_loss(b, a, 5.0)), rel=1e-5)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    logits = a @ b.T * 5
    rows = [logits[i][[j for j in range(4) if j == i or not same[i, j]]] for i in range(4)]
    columns = [logits[:, i][[j for j in range(4) if j == i or not same[i, j]]] for i in range(4)]
    by_hand = sum(float(r.logsumexp(0)) - float(logits[i, i]) for i, r in enumerate(rows)) / 8
    by_hand += sum(float(c.logsumexp(0)) - float(logits[i, i]) for i, c in enumerate(columns)) / 8
    assert float(contrastive_loss(a, b, 5.0, same)) == pytest.approx(by_hand, rel=1e-5)


def test_mini_clip_meets_in_unit_vectors_and_ignores_padding():
    torch.manual_seed(0)
    clip = MiniCLIP(_vit(), TextTower(30, 24, depth=1), 16, 24, dim=8).eval()
    ids = torch.tensor([[4, 5, 6], [7, 8, 0]])
    out = clip(torch.randn(2, 1, 8, 8), ids)
    for name in ("image", "text"):
        assert torch.allclose(out[name].norm(dim=-1), torch.ones(2)) and out[name].shape == (2, 8)
    assert float(out["scale"].detach()) == pytest.approx(1 / 0.07, rel=1e-4)
    assert torch.allclose(clip.encode_text(ids[1:, :2]), out["text"][1:], atol=1e-5)
    bag = TextTower(30, 24).eval()
    assert torch.allclose(bag(ids), bag(ids.flip(1)), atol=1e-5)
    with pytest.raises(InputError, match="at most 32"):
        clip.encode_text(torch.ones(1, 40, dtype=torch.int64))


def test_cosine_head_over_any_list_of_classes():
    torch.manual_seed(0)
    vectors, x = torch.randn(4, 3, 6), torch.randn(2, 6)
    rows = class_vectors(vectors)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(4))
    head, longer = CosineHead(rows[:3], 50), CosineHead(rows, 50)
    assert torch.allclose(head(x), longer(x)[:, :3], atol=1e-4) and not list(head.parameters())
    assert torch.allclose(head(3 * x), head(x), atol=1e-4) and float(head(rows[1:2])[0, 1]) == pytest.approx(50, rel=1e-5)
    told = CosineHead(rows, 50, background=True)
    assert torch.allclose(told(x)[:, 1:], longer(x), atol=1e-4) and [n for n, _ in told.named_parameters()] == ["background"]


def test_a_student_begins_with_layers_of_its_teacher():
    teacher = nn.ModuleList(nn.Linear(3, 3) for _ in range(6))
    student = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    assert copy_layers(student, teacher) == [0, 2, 5] == spread_layers(6, 3) and spread_layers(4, 1) == [0]
    assert torch.equal(student[2].weight, teacher[5].weight) and student[2].weight is not teacher[5].weight
    assert copy_layers(student, teacher, [5, 5, 1]) == [5, 5, 1] and torch.equal(student[0].bias, teacher[5].bias)
    for wrong in ([0, 1], [0, 1, 6]):
        with pytest.raises(InputError, match="for a student of 3"):
            copy_layers(student, teacher, wrong)
    with pytest.raises(InputError, match="weight differs"):
        copy_layers([nn.Linear(2, 3)], teacher, [0])
    with pytest.raises(InputError, match="7 of 6"):
        spread_layers(6, 7)
