"""The doctor finds each thing that is wrong, and says what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.distillation import losses
from tutelage.distillation.cache import Cache, CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import TensorData
from tutelage.distillation.doctor import Finding, diagnose
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import BlackBoxTeacher, NetworkTeacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from .toy import Distil, Net, bits, lesson, samples


class Means(nn.Module):
    """Right on images whose brightest quarter is the class; wants inputs in 0..1, and fails on others."""

    def __init__(self, scale: float = 1.0, roll: int = 0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.roll = roll

    def forward(self, x):
        cells = nn.functional.adaptive_avg_pool2d(x * self.scale, 2).flatten(1)
        fits = 1.0 - (x * self.scale).abs().amax((1, 2, 3)).clamp_min(1.0)  # bright beyond 1: no idea
        return (cells * (fits[:, None] > -0.5)).roll(self.roll, 1) * 10


def quarters(scale: float = 1.0) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    images = 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.6
    return TensorData(images * scale, labels)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(64, 4)

    def forward(self, x):
        return self.body(x.flatten(1) / x.abs().amax())


def pictures(teacher: nn.Module, data: TensorData | None = None, method: Distil | None = None) -> TrainingJob:
    return TrainingJob(
        Student(), teacher, method or Distil(), data or quarters(), TrainingSettings(steps=20, batch_size=20, lr=0.01)
    )


def found(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_healthy_lesson_passes_every_check_and_is_left_as_it_was() -> None:
    made = pictures(Means())
    before, generator = (bits(made.student), bits(made.teacher.network)), torch.get_rng_state()
    findings = diagnose(made)
    assert [f.check for f in findings] == [
        "first batch", "teacher frozen", "teacher score", "gradients", "loss balance", "overfit one batch",
    ]  # fmt: skip
    assert all(f.ok and not f.remedy for f in findings), findings
    assert (bits(made.student), bits(made.teacher.network)) == before
    assert torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None for p in made.student.parameters())


def fails(finding: Finding, *words: str) -> None:
    assert not finding.ok and finding.remedy
    for word in words:
        assert word in finding.message + finding.remedy


def test_another_class_order_is_recognised() -> None:
    fails(found(diagnose(pictures(Means(roll=1))), "class order"), "100 %", "1 is 0")


def test_another_normalisation_is_recognised() -> None:
    fails(found(diagnose(pictures(Means(), quarters(255.0))), "normalisation"), "divided by 255")


def test_a_teacher_that_knows_nothing_is_recognised() -> None:
    class Blank(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 4)

    fails(found(diagnose(pictures(Blank())), "teacher score"), "25 %", "weights")


def test_a_teacher_in_training_mode_or_that_changes_is_recognised() -> None:
    class Loose(NetworkTeacher):
        def predict(self, batch):
            self.network.train()
            return {"logits": self.network(batch.inputs.flatten(1)[:, :4])}

    made = pictures(Means())
    made.teacher = Loose(Net(norm=True, classes=4))
    made.teacher.network.requires_grad_(True)
    fails(found(diagnose(made), "teacher frozen"), "want gradients", "eval()")
    made.teacher.network.requires_grad_(False)
    fails(found(diagnose(made), "teacher frozen"), "changes norm")


def test_parameters_without_gradient_are_named() -> None:
    made = lesson()
    made.student.spare = nn.Linear(2, 2)
    fails(found(diagnose(made), "gradients"), "student.spare.weight", "idle")


def test_a_term_that_moves_nothing_is_named() -> None:
    class Faint(Distil):
        def loss_weights(self):
            return {"soft": 1e-5, "hard": 1.0}

    fails(found(diagnose(lesson(Faint())), "loss balance"), "soft moves nothing")


def test_a_target_out_of_reach_is_recognised() -> None:
    class Fight(Distil):
        def loss_terms(self, batch, student, teacher):
            ours = student["logits"]
            up = losses.cross_entropy(ours, batch.labels)
            return {"up": up, "down": losses.cross_entropy(-ours, batch.labels)}

        def loss_weights(self):
            return {}

    with torch.no_grad():
        made = lesson(Fight())
        for p in made.student.parameters():
            p.mul_(0.01)
    fails(found(diagnose(made), "overfit one batch"), "terms that fight")


def test_a_cache_that_differs_from_its_teacher_is_recognised(tmp_path: Path) -> None:
    made = pictures(Means())
    build(made, tmp_path)
    made.teacher = CachedTeacher(Cache(tmp_path), made.teacher)
    assert found(diagnose(made), "cache").ok
    made.teacher.source.network.scale.data.mul_(1.02)
    fails(found(diagnose(made), "cache"), "build the cache again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.data.labels.__setitem__(slice(None), 4), ("a label is 4", "4 classes")),
        (lambda m: m.data.labels.__setitem__(slice(None), -1), ("a label is -1",)),
        (lambda m: m.data.inputs.__setitem__(slice(None), float("nan")), ("not finite", "inputs")),
        (lambda m: m.teacher.network.scale.data.fill_(float("nan")), ("not finite", "teacher's output 'logits'")),
        (lambda m: setattr(m, "teacher", NetworkTeacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))), ("disagree", "(20, 7)")),
        (lambda m: setattr(m.data, "labels", None) or setattr(m, "method", Supervised()), ("needs labels",)),
    ],
)
def test_what_is_sure_to_be_wrong_stops_training_and_the_doctor(change, words: tuple[str, ...]) -> None:
    made = pictures(Means())
    change(made)
    with pytest.raises(InputError) as caught:
        train(made)
    for word in words:
        assert word in str(caught.value)
    findings = diagnose(made)
    assert len(findings) == 1 and not findings[0].ok and words[0] in findings[0].message


def test_a_black_box_is_not_asked_by_the_quick_form() -> None:
    made = lesson(steps=1)
    made.teacher = BlackBoxTeacher(lambda x: x[:, :3], version="1")
    train(made)
    assert made.teacher.queries == 16


def test_the_quick_form_can_be_turned_off() -> None:
    made = lesson(data=TensorData(samples().inputs, samples().labels.clone()))
    made.data.inputs[0] = float("nan")
    made.data.inputs[1:] = float("nan")
    with pytest.raises(InputError):
        train(made)
    assert train(lesson(), check=False).history


class Words(nn.Module):
    """Tokens [B, N] and positions, which are an embedding too, to logits."""

    def __init__(self, words: int = 9):
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(words, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        places = self.places(torch.arange(ids.shape[1]))
        return self.head(((self.words(ids) + places) * mask[..., None]).mean(1))


def texts(student: int, teacher: int) -> TrainingJob:
    inputs = {"ids": torch.arange(60).view(12, 5) % 9, "mask": torch.ones(12, 5, dtype=torch.int64)}
    return TrainingJob(
        Words(student), Words(teacher), Distil(), TensorData(inputs, torch.arange(12) % 3), TrainingSettings(steps=2, batch_size=6)
    )


def test_vocabularies_are_compared() -> None:
    assert found(diagnose(texts(9, 9)), "vocabulary").message == "student and teacher know 9 and 9 words for ids"
    fails(found(diagnose(texts(9, 12)), "vocabulary"), "same vocabulary")
    assert not any(finding.check == "vocabulary" for finding in diagnose(lesson()))
    assert train(texts(9, 12)).history, "a teacher may know more words than it is shown"


@pytest.mark.parametrize(("sizes", "whose"), [((8, 9), "student"), ((9, 8), "teacher")])
def test_a_token_outside_a_vocabulary_stops_training_before_the_look_up(sizes: tuple[int, int], whose: str) -> None:
    made = texts(*sizes)
    with pytest.raises(InputError, match=f"an id is 8, the {whose} knows 8") as caught:
        train(made)
    assert caught.value.where == "ids" and not any(m._forward_pre_hooks for m in made.student.modules())
    (only,) = diagnose(made)
    assert not only.ok and "tokenizer" in only.remedy
