import io

import pytest
import torch
from safetensors.torch import load, save

from tutelage.distillation.memory_bank import EMPTY, FeatureQueue, SlotMemory, nearest_entries
from tutelage.errors import InputError


def _batch(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(start, start + count)
    return ids[:, None].float().expand(-1, 3), ids % 4, ids


def test_a_queue_holds_the_last_writes_oldest_first():
    queue = FeatureQueue(5, 3)
    assert len(queue) == 0 and queue.entries()[0].shape == (0, 3)
    for start, count in ((0, 3), (3, 4), (7, 1)):
        queue.enqueue(*_batch(start, count))
    features, labels, ids = queue.entries()
    assert ids.tolist() == [3, 4, 5, 6, 7] and labels.tolist() == [3, 0, 1, 2, 3] and features[:, 0].tolist() == ids.tolist()
    queue.enqueue(*_batch(10, 12))
    assert queue.entries()[2].tolist() == [17, 18, 19, 20, 21]
    queue.enqueue(torch.zeros(1, 3))
    assert queue.entries()[1].tolist()[-1] == EMPTY
    with pytest.raises(InputError, match="queue of width 3"):
        queue.enqueue(torch.zeros(2, 4))
    with pytest.raises(InputError, match="at least 1"):
        FeatureQueue(0, 3)


def test_a_random_start_is_seeded_and_counts_as_held():
    first, second = (FeatureQueue(4, 8, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first.features, second.features) and len(first) == 4
    assert torch.allclose(first.features.norm(dim=1), torch.ones(4))
    first.enqueue(torch.zeros(1, 8))
    assert not first.entries()[0][-1].any() and torch.equal(first.entries()[0][:3], second.features[1:])


def test_what_is_stored_holds_no_gradient():
    queue, features = FeatureQueue(4, 3), torch.randn(2, 3, requires_grad=True)
    queue.enqueue(features)
    assert not queue.features.requires_grad and not list(queue.parameters())


@pytest.mark.parametrize("make", [lambda: FeatureQueue(5, 3), lambda: SlotMemory(40, 3, momentum=0.3)])
def test_a_resumed_memory_goes_on_to_the_same_bits(make):
    def write(memory, start):
        features, labels, ids = _batch(start, 4)
        if isinstance(memory, SlotMemory):
            memory.write(ids, features + 1, labels)
        else:
            memory.enqueue(features, labels, ids)

    whole, first, second = make(), make(), make()
    for start in (0, 2, 4, 9):
        write(whole, start)
    write(first, 0)
    write(first, 2)
    stored = io.BytesIO(save(first.state_dict())).getvalue()
    second.load_state_dict(load(stored))
    write(second, 4)
    write(second, 9)
    assert all(torch.equal(a, b) for a, b in zip(whole.entries(), second.entries()))


def test_slots_are_written_by_id_with_momentum():
    memory = SlotMemory(6, 2, momentum=0.5, normalize=False)
    memory.write(torch.tensor([4, 1]), torch.tensor([[2.0, 0], [0, 2]]), torch.tensor([7, 8]))
    memory.write(torch.tensor([4]), torch.tensor([[0.0, 4]]))
    features, labels, ids = memory.entries()
    assert ids.tolist() == [1, 4] and labels.tolist() == [8, 7] and features.tolist() == [[0, 2], [1, 2]] and len(memory) == 2
    unit = SlotMemory(3, 2)
    unit.write(torch.tensor([2, 2]), torch.tensor([[3.0, 0], [0, 5]]))
    assert unit.features[2].tolist() == [0, 1]
    with pytest.raises(InputError, match="ids up to 3"):
        unit.write(torch.tensor([3]), torch.zeros(1, 2))
    with pytest.raises(InputError, match="momentum"):
        SlotMemory(3, 2, momentum=1.0)


def test_nearest_entries_leave_out_a_querys_own():
    features = torch.eye(4)
    queries = torch.tensor([[1.0, 0.5, 0, 0], [0, 0, 0.2, 1]])
    assert nearest_entries(queries, features, 2)[1].tolist() == [[0, 1], [3, 2]]
    own = torch.tensor([[True, False, False, False], [False, False, False, True]])
    values, places = nearest_entries(queries, features, 1, own)
    assert places.tolist() == [[1], [2]] and values[0, 0] == 0.5
    assert nearest_entries(queries, features, 9)[1].shape == (2, 4)
