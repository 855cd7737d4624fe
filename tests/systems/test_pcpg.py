"""PCPG: rewards from the edit distance, windows over steps, the loss, the reader, and training on synthetic lips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tutelage import distill
from tutelage.cli import main
from tutelage.distillation.data import TensorData
from tutelage.distillation.edit_distance import edit_distances, error_rates, prefix_edit_distances
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.policy_gradient import advantages, discounted_returns, policy_gradient_loss
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.beam_search import beam_search
from tutelage.networks.encoder_decoder import EncoderDecoder
from tutelage.networks.sampling import Sampled, Sampling
from tutelage.systems.pcpg import (
    PCPG,
    CharacterVocabulary,
    VideoFront,
    edit_rewards,
    lexicon,
    lip_reader,
    lips,
    make_kernel,
    pool_windows,
    sequence_data,
    transcribe,
    window_loss,
)
from tutelage.systems.pcpg.synthetic_lips import IMAGE_SIZE, LETTERS

ABC = CharacterVocabulary("abcdx")


def rows(*texts: str) -> tuple[Tensor, Tensor]:
    """Ids of texts without their end, padded with 0, and lengths."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.zeros(len(texts), max(1, int(lengths.max())), dtype=torch.int64)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(ABC.ids(text)[:-1], dtype=torch.int64)
    return ids, lengths


def some_steps(batch: int = 4, steps: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, returns and masks of unequal lengths 1 to ``steps``, in float64."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(steps) < torch.tensor([steps, 1, 2, steps - 2][:batch])[:, None]
    logs = -torch.rand(batch, steps, generator=rng, dtype=torch.float64)
    return logs.requires_grad_(), torch.randn(batch, steps, generator=rng, dtype=torch.float64), mask


# -- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "rewards"),
    [("abx", [1, 1, 0]), ("axc", [1, 0, 1]), ("abcd", [1, 1, 1, -1]), ("xbc", [0, 1, 1])],
)
def test_step_rewards(drawn: str, rewards: list[int]) -> None:
    (ids, _), (truth, lengths) = rows(drawn), rows("abc")
    assert edit_rewards(ids, ids > 0, truth, lengths).tolist() == [rewards]


def test_prefix_distances_of_one_text() -> None:
    (ids, _), (truth, lengths) = rows("abx"), rows("abc")
    assert prefix_edit_distances(ids, ids > 0, truth, lengths).tolist() == [[3, 2, 1, 1]]


def plain_distance(left: str, right: str) -> int:
    """The textbook recursion, written apart."""
    if not left or not right:
        return len(left) + len(right)
    if left[-1] == right[-1]:
        return plain_distance(left[:-1], right[:-1])
    return 1 + min(plain_distance(left[:-1], right), plain_distance(left, right[:-1]), plain_distance(left[:-1], right[:-1]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("abx", max_size=5), st.text("abx", max_size=5)), min_size=1, max_size=4))
def test_rewards_sum_to_the_truth_less_the_distance(pairs: list[tuple[str, str]]) -> None:
    """Empty hypotheses and empty truths too, side by side with longer ones."""
    (ids, drawn), (truth, lengths) = rows(*(one for one, _ in pairs)), rows(*(one for _, one in pairs))
    counted = torch.arange(ids.shape[1]) < drawn[:, None]
    rewards = edit_rewards(ids, counted, truth, lengths)
    distances = [plain_distance(one, other) for one, other in pairs]
    assert rewards.sum(1).tolist() == [len(other) - d for (_, other), d in zip(pairs, distances, strict=True)]
    assert rewards.abs().max() <= 1 and not rewards[~counted].any()
    assert edit_distances([one for one, _ in pairs], [one for _, one in pairs]).tolist() == distances


def test_returns_of_one_text() -> None:
    rewards = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    returns = discounted_returns(rewards, torch.ones(1, 3, dtype=torch.bool), 0.95)
    torch.testing.assert_close(returns, torch.tensor([[1.9025, 0.95, 1.0]], dtype=torch.float64))


def test_error_rates_of_words_and_characters() -> None:
    found = error_rates(["set red", "bin"], ["set red", "bins"])
    assert found == {"CER": pytest.approx(100 / 11), "WER": pytest.approx(100 / 3), "exact": 50.0}
    with pytest.raises(InputError, match="no truth"):
        error_rates(["a"], [""])
    with pytest.raises(InputError, match="2 truths"):
        error_rates(["a"], ["a", "b"])


# -- windows ---------------------------------------------------------------------------------------------------------

R = torch.tensor([[1.0, 1.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
L = torch.tensor([[0.1, 0.2, 0.7, 0.4, 0.3]], dtype=torch.float64)
ALL = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize(("k", "stride", "total"), [(3, 1, 1 / 9), (3, 2, 1 / 9), (5, 1, 0.136), (1, 1, -0.1)])
def test_windows_of_five_steps(k: int, stride: int, total: float) -> None:
    kernel = make_kernel(k).double()
    if k == 3:
        kernel = torch.full((3,), 1 / 3, dtype=torch.float64)
    (returns, used), (logs, _) = pool_windows(R, ALL, kernel, stride), pool_windows(L, ALL, kernel, stride)
    assert used.all()
    assert float((returns * logs).sum()) == pytest.approx(total, abs=1e-7)
    if (k, stride) == (3, 1):
        torch.testing.assert_close(returns, torch.tensor([[1 / 3, 0, 0]], dtype=torch.float64))
        torch.testing.assert_close(logs, torch.tensor([[1 / 3, 1.3 / 3, 1.4 / 3]], dtype=torch.float64))
    assert float(window_loss(L, R, ALL, kernel, stride)) == pytest.approx(-total / used.shape[1], abs=1e-7)


def test_a_text_shorter_than_the_window_has_one() -> None:
    """Weights 1, 2, 3 over two steps: (1 x 4 + 2 x 1) scaled by 6 / 3; over none: no window."""
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    values = torch.tensor([[4.0, 1.0, 9.0, 9.0], [9.0] * 4, [1.0, 0.0, 2.0, 0.0]])
    pooled, used = pool_windows(values, mask, make_kernel(3, (1, 2, 3)))
    assert used.tolist() == [[True, False], [False, False], [True, True]]
    assert pooled.tolist() == [[12.0, 0.0], [0.0, 0.0], [7.0, 4.0]]
    pooled, used = pool_windows(values[:, :2], mask[:, :2], make_kernel(3, (1, 2, 3)))
    assert pooled[0].tolist() == [12.0] and used[:, 0].tolist() == [True, False, True]


def test_one_step_windows_are_reinforce() -> None:
    logs, returns, mask = some_steps()
    for baseline in ("none", "episode", "standardized", "batch"):
        advantage = advantages(returns, mask, baseline)
        windows = window_loss(logs, advantage, mask, make_kernel(1))
        plain = policy_gradient_loss(logs, advantage, mask, per_step=True)
        torch.testing.assert_close(windows, plain, atol=1e-7, rtol=0)
        (one,), (other,) = (torch.autograd.grad(loss.mean(), logs) for loss in (windows, plain))
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


def test_a_step_is_weighted_with_its_neighbours_returns_and_none_behind_the_end_counts() -> None:
    """k = 3 of five steps: l_0 stands in window 0 alone, l_2 in all three."""
    logs = L.clone().requires_grad_()
    kernel = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: window_loss(x, R, ALL, kernel), (logs,))
    (slope,) = torch.autograd.grad(window_loss(logs, R, ALL, kernel).sum(), logs)
    torch.testing.assert_close(slope, torch.tensor([[-1 / 27, -1 / 27, -1 / 27, 0, 0]], dtype=torch.float64))
    logs, returns, mask = some_steps()
    loss = window_loss(logs, returns, mask, kernel)
    (slope,) = torch.autograd.grad(loss.sum(), logs)
    assert not slope[~mask].any() and slope[mask].all()
    spoiled = window_loss(logs.masked_fill(~mask, float("nan")), returns.masked_fill(~mask, 1e9), mask, kernel)
    torch.testing.assert_close(spoiled, loss)


@pytest.mark.parametrize(("pooled", "total"), [("rewards", 1 / 3 * 0.2), ("losses", 1 / 3 - 1.3 / 3)])
def test_one_side_alone_is_pooled(pooled: str, total: float) -> None:
    """The other is read in the middle of each window: l = .2, .7, .4 and R = 1, -1, 0."""
    kernel = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert float(window_loss(L, R, ALL, kernel, pooled=pooled)) == pytest.approx(-total / 3)


def test_equal_rewards_standardized_give_no_loss() -> None:
    mask = ALL.clone()
    advantage = advantages(torch.ones(1, 5), mask, "standardized")
    assert window_loss(L.float(), advantage, mask, make_kernel(3)).tolist() == [0.0]


def test_order_and_padding_change_no_text() -> None:
    logs, returns, mask = some_steps()
    loss = window_loss(logs, returns, mask, make_kernel(3).double())
    order = torch.tensor([2, 0, 3, 1])
    moved = window_loss(logs[order], returns[order], mask[order], make_kernel(3).double())
    torch.testing.assert_close(moved, loss[order])
    wider = [nn.functional.pad(one, (0, 3)) for one in (logs, returns, mask)]
    torch.testing.assert_close(window_loss(*wider, make_kernel(3).double()), loss)


def exact_and_estimated(k: int, samples: int = 40_000) -> tuple[Tensor, Tensor, Tensor]:
    """Of two steps of two letters, truth "aa": the exact gradient of the expected return, and mean and variance of estimates."""
    logits = torch.tensor([[0.3, -0.2], [-0.5, 0.4]], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(-logits.softmax(-1)[:, 0].sum() / 2, logits)
    many = logits.detach().expand(samples, 2, 2).clone().requires_grad_()
    rng = torch.Generator().manual_seed(0)
    ids = torch.multinomial(logits.detach().softmax(-1), samples, replacement=True, generator=rng).T
    mask = torch.ones_like(ids, dtype=torch.bool)
    truth = torch.zeros_like(ids)
    rewards = edit_rewards(ids, mask, truth, torch.full((samples,), 2)).double()
    logs = many.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    loss = window_loss(logs, discounted_returns(rewards, mask), mask, make_kernel(k).double())
    (slopes,) = torch.autograd.grad(loss.sum(), many)
    return exact, slopes.mean(0), slopes.var(0)


def test_reinforce_is_unbiased_and_windows_are_not() -> None:
    """By hand, k = 2: the loss is -(r_0 + 2 r_1)(l_0 + l_1) / 4, whose mean gradient is half the exact one at the first step, and
    the exact one at the second. The variance of both is printed; here the window's is not smaller."""
    exact, mean, variance = exact_and_estimated(1)
    error = (variance.sum() / 40_000).sqrt()
    assert (mean - exact).norm() < 4 * error
    _, pooled, other = exact_and_estimated(2)
    assert (pooled - exact * torch.tensor([[0.5], [1.0]])).norm() < 4 * error
    assert (pooled - exact).norm() > 10 * error
    print(f"trace of the covariance: {variance.sum():.3f} with k = 1, {other.sum():.3f} with k = 2")


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"kernel": (1.0, 1.0)}, {"kernel": (0.0, 1.0, 1.0)}, {"gamma": 2.0}, {"baseline": "critic"}, {"pooled": "x"},
     {"stride": 0}, {"mode": "beam"}, {"weight": -1.0}, {"windows": 3}],
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError) as refused:
        PCPG(**options)
    assert refused.value.remedy


# -- the reader ------------------------------------------------------------------------------------------------------


def small_reader(**options: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden": 12, "embedding": 8, "max_length": 7}
    return lip_reader("small", len(CharacterVocabulary(LETTERS)), 1, *IMAGE_SIZE, **sizes | options).eval()


def some_lips(count: int = 8) -> tuple[TensorData, list[str]]:
    clips = lips(lexicon(0, 8, 3, 5), 0, "test", count=count, noise=0.3)
    return sequence_data(clips.clips, clips.words, CharacterVocabulary(LETTERS), clips.lengths), clips.words


def test_weights_of_the_published_size() -> None:
    """Counted by hand from the layers' sizes."""
    with torch.device("meta"):
        reader = lip_reader("published", 31)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in reader.named_children()}
    resnet18 = 11_689_512 - 513_000 - 9_408 - 128  # without its head and its first layer
    assert count["front"] == 3 * 64 * 5 * 7 * 7 + 128 + resnet18
    assert count["encoder"] == 2 * (3 * 1024 * (512 + 1024) + 6144) + 4 * (3 * 1024 * (2048 + 1024) + 6144)
    assert count["decoder"] == 3 * 1024 * (256 + 1024 + 1024) + 6144 + 2 * (3 * 1024 * 2048 + 6144)
    assert count["attend_frames"] + count["attend_state"] + count["score"] == 2048 * 1024 + 1024 + 1024
    assert count["embed"] == 31 * 256 and count["head"] == 2048 * 31 + 31


def test_the_video_front_does_not_read_padding() -> None:
    torch.manual_seed(0)
    front = VideoFront(1).eval()
    clips = torch.randn(1, 1, 3, 20, 24)
    padded = torch.cat([clips, torch.full((1, 1, 2, 20, 24), 9.0)], 2)
    with torch.no_grad():
        plain, behind = front(clips), front(padded, torch.arange(5)[None] < 3)
    assert plain.shape == (1, 3, 512)
    torch.testing.assert_close(behind[:, :3], plain, atol=1e-5, rtol=1e-4)
    assert not behind[:, 3:].any()


def test_frames_behind_the_end_and_neighbours_change_nothing() -> None:
    reader, (data, _) = small_reader(), some_lips()
    with torch.no_grad():
        together = reader(**data.inputs)
        for row in range(3):
            length = int(data.inputs["mask"][row].sum())
            alone = reader(data.inputs["inputs"][row : row + 1, :, :length])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(8, 7))


def test_drawn_texts_have_the_log_probabilities_of_teacher_forcing() -> None:
    reader, (data, _) = small_reader(), some_lips()
    mask = data.inputs["mask"]
    with torch.no_grad():
        memory = reader.encode(**data.inputs)
        drawn = reader.sample_from(memory, mask, Sampling(7, eos_id=2), torch.Generator().manual_seed(1))
        logs = reader.decode(nn.functional.pad(drawn.ids[:, :-1], (1, 0), value=1), memory, mask).log_softmax(-1)
    wanted = logs.gather(-1, drawn.ids[..., None])[..., 0] * drawn.mask
    torch.testing.assert_close(drawn.log_probs, wanted, atol=1e-5, rtol=1e-4)


def test_the_first_state_sums_directions_layer_by_layer() -> None:
    data, _ = some_lips(2)
    for init in ("sum", "slice"):
        reader = small_reader(layers=2, init=init)
        _, first = reader.encode(**data.inputs)
        packed = nn.utils.rnn.pack_padded_sequence(
            reader.front(data.inputs["inputs"]), data.inputs["mask"].sum(1), batch_first=True, enforce_sorted=False
        )
        last = reader.encoder(packed)[1]  # layer 0 forwards, layer 0 backwards, layer 1 forwards, layer 1 backwards
        wanted = [last[0] + last[1], last[2] + last[3]] if init == "sum" else [last[0], last[1]]
        torch.testing.assert_close(first, torch.stack(wanted, 1))


def test_beam_search_finds_what_greedy_decoding_misses() -> None:
    """After a (.6) all four letters are alike; after b (.4) the end is sure: p(b end) = .4 beats p(a x) = .15."""
    table = torch.full((6, 6), -30.0)
    table[1, 3], table[1, 4] = np.log(0.6), np.log(0.4)
    table[3, 2:6] = np.log(0.25)
    table[4, 2] = 0.0
    table[5, 2] = 0.0

    def step(prefixes: Tensor, owner: Tensor) -> Tensor:
        return table[prefixes[:, -1]]

    sampling = Sampling(4, temperature=0.0, eos_id=2)
    found = beam_search(step, 2, sampling, beams=3)
    assert found.ids[:, :2].tolist() == [[4, 2]] * 2 and found.lengths.tolist() == [2, 2]
    assert found.log_probs.sum(1).exp().tolist() == pytest.approx([0.4, 0.4])
    assert beam_search(step, 1, sampling, beams=1).ids[0, 0] == 3
    with pytest.raises(InputError, match="0 beams"):
        beam_search(step, 1, sampling, beams=0)


def test_texts_and_data_that_are_refused() -> None:
    assert ABC.text(ABC.ids("a cab")) == "a cab" and len(CharacterVocabulary()) == 31
    for wrong in ("aa", "a b", ""):
        with pytest.raises(InputError):
            CharacterVocabulary(wrong)
    with pytest.raises(InputError, match="holds 'z'"):
        ABC.ids("z")
    clips = torch.zeros(2, 1, 4, 6, 8)
    with pytest.raises(InputError, match="1 texts of 2"):
        sequence_data(clips, ["a"], ABC)
    with pytest.raises(InputError, match="4 frames"):
        sequence_data(clips, ["a", "b"], ABC, torch.tensor([1, 5]))


# -- training --------------------------------------------------------------------------------------------------------


def some_job(method: PCPG, student: nn.Module | None = None, **changes: object) -> TrainingJob:
    data, _ = some_lips(16)
    return TrainingJob(student or small_reader(), None, method, data, TrainingSettings(steps=4, batch_size=4, **changes))


@pytest.mark.parametrize(
    "options",
    [{"baseline": name} for name in ("episode", "standardized", "batch", "greedy")]
    + [{"mode": "greedy"}, {"own_inputs": 1.0}, {"pooled": "rewards"}, {"weight": 1.0}, {"k": 9, "stride": 2}],
)
def test_every_option_trains(options: dict[str, object]) -> None:
    result = train(some_job(PCPG(max_length=7, **{"warmup": 0.0} | options), log_every=1))
    terms = result.history[-1]["terms"]
    assert np.isfinite(list(terms.values())).all() and terms["pg"] != 0


def test_the_warm_up_draws_nothing_and_the_kernel_is_no_parameter() -> None:
    method = PCPG(max_length=7)
    history = train(some_job(method, log_every=1)).history
    assert [record["terms"]["pg"] != 0 for record in history] == [False, False, True, True]
    assert not list(method.parameters()) and "kernel" in dict(method.named_buffers())


def test_a_network_without_the_methods_and_other_labels_are_refused() -> None:
    with pytest.raises(InputError, match="no encode, decode, sample_from"):
        train(some_job(PCPG(), nn.Linear(2, 2)))
    job = some_job(PCPG())
    for labels, message in ((torch.zeros(16), "labels are torch.float32"), (torch.tensor([[3, -100, 2]] * 16), "inside a text")):
        job.data = TensorData(job.data.inputs, labels)
        with pytest.raises(InputError, match=message):
            train(job)
    job.data = TensorData({"frames": torch.zeros(16, 2)}, torch.full((16, 2), 3))
    with pytest.raises(InputError, match="inputs are frames"):
        train(job)


def test_a_transformer_is_a_student_too() -> None:
    torch.manual_seed(0)
    student = EncoderDecoder(5, 6, dim=8, depth=1, num_heads=2)
    labels = torch.randint(3, 6, (16, 4))
    labels[:, -1] = 2
    data = TensorData(torch.randn(16, 6, 5), labels)
    settings = TrainingSettings(steps=4, batch_size=4, log_every=1)
    assert train(TrainingJob(student, None, PCPG(max_length=6), data, settings)).history[-1]["terms"]["pg"] != 0


def test_the_policy_gradient_alone_learns_one_word() -> None:
    """A reader that spells at random learns "ab" from the rewards alone."""

    class Speller(nn.Module):
        """Free logits of two steps."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, 6))

        def encode(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
            return inputs

        def decode(self, ids: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.logits.expand(len(memory), -1, -1)

        def sample_from(self, memory: Tensor, mask: Tensor | None, sampling: Sampling, generator: torch.Generator) -> Sampled:
            logs = self.logits.log_softmax(-1).expand(len(memory), -1, -1)
            ids = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator).view(-1, 2)
            return Sampled(ids, logs.gather(-1, ids[..., None])[..., 0], torch.full((len(ids),), 2))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.logits.expand(len(inputs), -1, -1)

    data = TensorData(torch.zeros(16, 1), torch.tensor([[3, 4]] * 16))
    method = PCPG(k=2, warmup=0.0, weight=1.0, eos_id=None, max_length=2)
    student = train(TrainingJob(Speller(), None, method, data, TrainingSettings(steps=60, batch_size=16, lr=0.1))).student
    assert student.logits.argmax(-1).tolist() == [3, 4]
    assert student.logits.softmax(-1)[[0, 1], [3, 4]].min() > 0.5


def test_the_lines_of_the_page(tmp_path: Path) -> None:
    """Small here, and the published size by its name alone."""
    vocabulary = CharacterVocabulary()
    texts = ["bin blue", "set", "lay"]
    data = sequence_data(torch.randn(3, 3, 5, 6, 8), texts, vocabulary)
    reader = distill(lip_reader("small", height=6, width=8), None, data, "pcpg", steps=2, batch_size=2, lr=1e-4).student
    assert set(error_rates(transcribe(reader, data, vocabulary), texts)) == {"CER", "WER", "exact"}
    assert len(transcribe(reader, data, vocabulary, beams=3, max_length=3)) == 3


def test_a_recipe(tmp_path: Path) -> None:
    labels = np.array([[3, 4, 2], [5, 2, -100]] * 2)
    np.savez(tmp_path / "clips.npz", inputs=np.random.default_rng(0).random((4, 1, 5, 6, 8), np.float32), labels=labels)
    network = {"size": "small", "channels": 1, "height": 6, "width": 8}
    recipe = f"""
method = "pcpg"
out = "{tmp_path}/run"
[student]
model = "pcpg"
options = {{ size = "small", channels = 1, height = 6, width = 8 }}
[data]
file = "{tmp_path}/clips.npz"
[options]
k = 3
weight = 0.3
[settings]
steps = 2
batch_size = 2
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    lip_reader(**network).load_state_dict(load_file(tmp_path / "run/seed-0/student.safetensors"))
