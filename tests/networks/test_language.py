import pytest
import torch
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.causal_lm import (
    CausalLM,
    join_prompts,
    response_log_prob,
    response_loss,
    token_log_probs,
)
from tutelage.networks.encoder_decoder import EncoderDecoder, causal_mask
from tutelage.networks.sampling import Sampling, log_distribution


def _lm(seed: int = 0, **options) -> CausalLM:
    torch.manual_seed(seed)
    lm = CausalLM(**{"vocab_size": 20, "dim": 16, "depth": 2, "num_heads": 4, "num_kv_heads": 2, **options})
    with torch.no_grad():  # as large as after training: attention must count
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(12)
    return lm


def _ids(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(2, 20, shape, generator=torch.Generator().manual_seed(seed))


def test_later_tokens_do_not_change_earlier_logits():
    lm, ids = _lm(), _ids(2, 6)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 20
    assert torch.equal(lm(ids)[:, :4], lm(changed)[:, :4]) and not torch.equal(lm(ids)[:, 4:], lm(changed)[:, 4:])
    assert lm.head.weight is lm.embedding.weight and _lm(tie_embeddings=False).head.weight.shape == (20, 16)


def test_padding_on_either_side_changes_nothing():
    lm, ids = _lm(), _ids(1, 4)
    plain = lm(ids)
    pads = torch.zeros(1, 3, dtype=torch.int64)
    left = lm(torch.cat([pads, ids], 1), torch.tensor([[0, 0, 0, 1, 1, 1, 1]]))
    right = lm(torch.cat([ids, pads], 1), torch.tensor([[1, 1, 1, 1, 0, 0, 0]]))
    assert torch.allclose(left[:, 3:], plain, atol=1e-5) and torch.allclose(right[:, :4], plain, atol=1e-5)


def test_a_continued_cache_equals_the_full_pass():
    lm, ids = _lm(), _ids(2, 7)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    full = lm.run(lm.embedding(ids), mask)
    first = lm.run(lm.embedding(ids[:, :4]), mask[:, :4])
    rest = lm.run(lm.embedding(ids[:, 4:]), mask, past=first.cache)
    assert torch.allclose(rest.logits, full.logits[:, 4:], atol=1e-4)
    for (k, v), (k2, v2) in zip(rest.cache, full.cache):
        assert k.shape == (2, 2, 7, 4)  # the padded slot may hold anything
        assert torch.allclose(k[:, :, 1:], k2[:, :, 1:], atol=1e-4) and torch.allclose(v[:, :, 1:], v2[:, :, 1:], atol=1e-4)


def test_injected_keys_and_values_of_itself_equal_the_full_pass():
    lm, ids = _lm(), _ids(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    full = lm.run(lm.embedding(ids), mask)
    every = lm.run(lm.embedding(ids), mask, inject=full.cache)
    real = mask.bool()
    assert torch.allclose(every.logits[real], full.logits[real], atol=1e-4)
    slots = torch.arange(3, 6).expand(2, -1)
    part = lm.run(lm.embedding(ids[:, 3:]), mask, inject=full.cache, slots=slots)
    assert torch.allclose(part.logits, full.logits[:, 3:], atol=1e-5)
    shifted = lm.run(lm.embedding(ids[:, 3:]), mask, inject=full.cache, slots=slots, positions=slots - 3)
    assert not torch.allclose(shifted.logits, full.logits[:, 3:], atol=1e-3)  # restarted positions must be seen


def test_a_teacher_sees_an_image_through_the_students_cache():
    student, teacher = _lm(0), _lm(1)
    text = _ids(1, 4)

    def told(image: torch.Tensor) -> torch.Tensor:
        cache = student.run(torch.cat([image, student.embedding(text)], 1)).cache
        slots = torch.arange(3, 7).expand(1, -1)
        return teacher.run(teacher.embedding(text), inject=cache, slots=slots).logits

    image = torch.randn(1, 3, 16)
    assert not torch.allclose(told(image), told(-image), atol=1e-4)
    prefix = [(k[:, :, :3], v[:, :, :3]) for k, v in student.run(image).cache]
    visual = teacher.run(teacher.embedding(text), past=prefix)
    assert visual.logits.shape == (1, 4, 20)
    with pytest.raises(InputError, match="cache of 2 layers"):
        teacher.run(teacher.embedding(text), past=prefix[:1])
    with pytest.raises(InputError, match="not both"):
        teacher.run(teacher.embedding(text), past=prefix, inject=prefix)


def test_drawn_log_probabilities_are_those_of_a_plain_pass():
    lm = _lm()
    prompts, mask = _ids(3, 4), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    drawn = lm.sample(prompts, mask, Sampling(max_new_tokens=6, eos_id=3), torch.Generator().manual_seed(1))
    again = lm.sample(prompts, mask, Sampling(max_new_tokens=6, eos_id=3), torch.Generator().manual_seed(1))
    assert torch.equal(drawn.ids, again.ids)
    whole = torch.cat([prompts, drawn.ids], 1)
    real = torch.cat([mask.bool(), drawn.mask], 1)
    by_hand = token_log_probs(lm(whole, real), whole)[:, 4:] * drawn.mask
    assert torch.allclose(drawn.log_probs, by_hand, atol=1e-5)
    for row, length in zip(drawn.ids, drawn.lengths.tolist()):
        ended = (row == 3).nonzero()
        assert length == (int(ended[0]) + 1 if len(ended) else len(row)) and not row[length:].any()
    drawn.log_probs.sum().backward()
    assert float(lm.embedding.weight.grad.abs().sum()) > 0


def test_temperature_zero_is_greedy_and_top_k_bounds_the_choice():
    lm, prompts = _lm(), _ids(2, 3)
    greedy = lm.sample(prompts, sampling=Sampling(max_new_tokens=4, temperature=0))
    ids = prompts
    for _ in range(4):
        ids = torch.cat([ids, lm(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(greedy.ids, ids[:, 3:])
    best = lm.sample(prompts, sampling=Sampling(max_new_tokens=4, top_k=1), generator=torch.Generator())
    assert torch.equal(best.ids, greedy.ids)
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert log_distribution(logits, Sampling(top_k=2)).exp()[0, 0] == 0
    assert torch.allclose(log_distribution(logits, Sampling(temperature=0.5)), F.log_softmax(logits * 2, -1))
    with pytest.raises(InputError, match="drawn at random"):
        lm.sample(prompts)
    with pytest.raises(InputError, match="temperature -1"):
        Sampling(temperature=-1)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    lm = _lm()
    prompts = _ids(1, 2).expand(4000, -1)
    drawn = lm.sample(prompts, sampling=Sampling(max_new_tokens=1, top_k=3), generator=torch.Generator().manual_seed(0))
    wanted = log_distribution(lm(prompts[:1])[:, -1], Sampling(top_k=3)).exp()[0]
    counts = torch.bincount(drawn.ids[:, 0], minlength=20) / 4000
    assert float((counts - wanted).abs().max().detach()) < 0.03


def test_prompts_and_responses_side_by_side():
    batch = join_prompts([[5], [6, 7, 8]], [[9, 9, 9], [4]], pad_id=1)
    assert batch.ids.tolist() == [[5, 9, 9, 9], [6, 7, 8, 4]] and batch.mask.all()
    assert batch.response.tolist() == [[False, True, True, True], [False, False, False, True]]
    short = join_prompts([[5], [6, 7]], [[9], []])
    assert short.mask.tolist() == [[True, True], [True, True]] and short.response.sum() == 1
    lm = _lm()
    logits = lm(batch.ids)
    logs = F.log_softmax(logits, -1)
    by_hand = [sum(logs[0, t - 1, 9] for t in (1, 2, 3)), logs[1, 2, 4]]
    assert torch.allclose(response_log_prob(logits, batch), torch.stack(by_hand), atol=1e-5)
    assert float(response_loss(logits, batch).detach()) == pytest.approx(-float(sum(by_hand).detach()) / 4, abs=1e-5)
    with pytest.raises(InputError, match="every prompt needs a token"):
        join_prompts([[]], [[1]])


def test_encoder_decoder_ignores_padding_and_does_not_look_ahead():
    torch.manual_seed(0)
    net = EncoderDecoder(3, 11, dim=16, depth=1).eval()
    inputs, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    targets = _ids(2, 4) % 9 + 2
    changed = inputs.clone()
    changed[0, 3:] = 7
    assert torch.equal(net(inputs, targets, mask)[0], net(changed, targets, mask)[0])
    assert not torch.allclose(net(inputs, targets)[0], net(changed, targets)[0])
    later = targets.clone()
    later[:, 2] = (later[:, 2] + 1) % 11
    assert torch.equal(net(inputs, targets, mask)[:, :3], net(inputs, later, mask)[:, :3])
    assert causal_mask(3, torch.tensor([[1, 1, 0]]))[0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]


def test_encoder_decoder_learns_to_reverse_and_decodes_greedily():
    torch.manual_seed(0)
    net = EncoderDecoder(8, 8, dim=32, depth=1, vocab_in=True)
    inputs = torch.randint(3, 8, (64, 3))
    targets = torch.cat([inputs.flip(1), torch.full((64, 1), 2)], 1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs, targets).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    found = net.eval().sample(inputs, sampling=Sampling(max_new_tokens=6, temperature=0, eos_id=2))
    assert float((found.ids == targets).all(1).float().mean()) > 0.95 and set(found.lengths.tolist()) == {4}
    logits = net(inputs, found.ids)
    by_hand = logits.log_softmax(-1).gather(-1, found.ids[..., None])[..., 0]
    assert torch.allclose(found.log_probs, by_hand, atol=1e-4)
