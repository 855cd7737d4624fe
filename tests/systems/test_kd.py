from __future__ import annotations

import pytest
import torch

from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.kd import KD


def test_loss_equals_a_hand_value() -> None:
    ours, theirs = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * torch.log(torch.tensor(3.0)), 0.0]])
    method = KD(tau=2.0, alpha=0.75)
    terms = method.loss_terms(Batch(ours, torch.tensor([0])), {"logits": ours}, {"logits": theirs})
    # the teacher says (3/4, 1/4) at T = 2: KL against (1/2, 1/2) = 3/4 ln 3/2 + 1/4 ln 1/2
    expected = 4 * (0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5)))
    assert terms["kd"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert terms["label"].item() == pytest.approx(0.6931472, abs=1e-6)
    assert method.loss_weights() == {"kd": 0.75, "label": 0.25}


def test_without_label_term_the_data_needs_no_labels() -> None:
    images = toy_images(0).inputs
    student, teacher = build_with_seed(lambda: SmallCNN(4, 4, 8), 0), build_with_seed(lambda: SmallCNN(4, 4, 8), 1)
    result = train(
        TrainingJob(
            student, teacher, KD(alpha=1.0), TensorData(images), TrainingSettings(steps=3, batch_size=8), task="classification"
        )
    )
    assert set(result.history[-1]["terms"]) == {"kd"}


def test_with_label_term_missing_labels_are_refused() -> None:
    student, teacher = build_with_seed(lambda: SmallCNN(4, 4, 8), 0), build_with_seed(lambda: SmallCNN(4, 4, 8), 1)
    with pytest.raises(InputError):
        train(TrainingJob(student, teacher, KD(), TensorData(toy_images(0).inputs), TrainingSettings(steps=3, batch_size=8)))


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"tau": 0.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        KD(**options)
