import copy

import pytest
import torch
from torch import nn

from tutelage.distillation.weight_averaging import SWAD, ExponentialAverage, WeightedAverage, gaussian_weights
from tutelage.errors import InputError


def _net(value: float) -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)
    return net


def test_exponential_average_of_weights_and_each_treatment_of_buffers():
    for buffers, mean, count in (("copy", 4.0, 4), ("average", 1.0, 4), ("own", 0.0, 0)):
        average = ExponentialAverage(_net(0), 0.75, buffers)
        average.update(_net(4))
        state = average.network.state_dict()
        assert bool((state["0.weight"] == 1).all()) and bool((state["1.running_mean"] == mean).all())
        assert int(state["1.num_batches_tracked"]) == count
        assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


def test_a_decay_of_one_freezes_and_of_zero_copies_and_may_be_a_schedule():
    frozen, copied = ExponentialAverage(_net(1), 1.0), ExponentialAverage(_net(1), 0.0)
    warm = ExponentialAverage(_net(0), lambda n: min(0.99, (1 + n) / (10 + n)))
    for average in (frozen, copied, warm):
        average.update(_net(3))
    assert float(frozen.network[0].bias[0]) == 1 and float(copied.network[0].bias[0]) == 3
    assert float(warm.network[0].bias[0]) == pytest.approx(0.9 * 3) and warm.updates == 1
    with pytest.raises(InputError, match="0..1"):
        ExponentialAverage(_net(0), 1.5)
    with pytest.raises(InputError, match="copy, average or own"):
        ExponentialAverage(_net(0), buffers="mean")


def test_a_resumed_exponential_average_goes_on_to_the_same_bits():
    def nets():
        return (_net(v) for v in (0.1, 0.7, 0.3, 0.9))

    whole, first, second = (ExponentialAverage(_net(0), lambda n: 0.9 / (n + 1)) for _ in range(3))
    for i, net in enumerate(nets()):
        whole.update(net)
        if i < 2:
            first.update(net)
    second.load(copy.deepcopy(first.state()))
    for net in list(nets())[2:]:
        second.update(net)
    pairs = zip(whole.network.state_dict().values(), second.network.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs) and second.updates == 4


def test_weighted_average_by_hand():
    average = WeightedAverage()
    average.add(_net(1), 1)
    average.add(_net(5), 3)
    average.add(_net(99), 0)
    other = WeightedAverage()
    other.add(_net(8), 4)
    average.merge(other)
    found = average.load_into(_net(0)).state_dict()
    assert bool((found["0.weight"] == (1 + 15 + 32) / 8).all()) and found["0.weight"].dtype == torch.float32
    assert int(found["1.num_batches_tracked"]) == 8
    again = WeightedAverage()
    again.load(average.state())
    assert torch.equal(again.load_into(_net(0))[0].weight, found["0.weight"])
    with pytest.raises(InputError, match="empty"):
        WeightedAverage().load_into(_net(0))
    for bad in (-1.0, float("nan")):
        with pytest.raises(InputError, match="0 or more"):
            average.add(_net(1), bad)


def _value(swad: SWAD) -> float:
    return float(swad.average().load_into(_net(0))[0].bias[0].detach())


def test_swad_averages_from_convergence_to_overfitting():
    losses = [3.0, 2.0, 1.0, 1.2, 1.1, 1.0, 2.0, 1.1, 2.0, 2.0, 2.0, 2.0]
    swad = SWAD(converge=3, overfit=3, tolerance=1.3)
    for number, loss in enumerate(losses):
        swad.step(_net(number))
        swad.validate(loss)
    # segment 2 is not beaten by the next two; segments 8 to 10 are above 1.3 times the mean of 1, 1.2 and 1.1
    assert swad.done and _value(swad) == pytest.approx(sum(range(2, 8)) / 6)


def test_swad_without_convergence_and_resumed():
    falling = SWAD(converge=3, overfit=3)
    for number in range(6):
        falling.step(_net(number))
        falling.validate(10.0 - number)
    assert _value(falling) == pytest.approx((3 + 4 + 5) / 3)
    with pytest.raises(InputError, match="no segment"):
        SWAD().average()

    losses = [3.0, 1.0, 1.2, 1.1, 9.0, 1.0, 9.0, 9.0]
    for cut in range(1, len(losses)):
        whole, first, second = (SWAD(3, 2, 1.3) for _ in range(3))
        for number, loss in enumerate(losses):
            for swad in [whole, first if number < cut else second]:
                swad.step(_net(number))
                swad.validate(loss)
            if number == cut - 1:
                second.load(copy.deepcopy(first.state()))
        assert _value(second) == _value(whole) and second.done == whole.done


def test_gaussian_weights_sum_to_one_and_peak_at_the_mean():
    weights = gaussian_weights(20, 15, 1)
    assert sum(weights) == pytest.approx(1) and max(weights) == weights[14] and weights[13] == pytest.approx(weights[15])
