"""Items of every kind become tensors and batches, or a message that names item and field."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation.data.items import Padding, as_tensors, collate, custom_batch, split_item
from tutelage.errors import InputError

X, Y = torch.zeros(2, 3), 1
Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    ("item", "inputs", "label"),
    [
        (X, X, None),
        ((X,), X, None),
        ((X, Y), X, Y),
        ([X, Y], X, Y),
        ({"image": X, "label": Y}, X, Y),
        ({"image": X, "labels": Y}, X, Y),
        ({"x": X, "target": Y}, X, Y),
        (Pair(X, Y), X, Y),
        ({"x": X}, X, None),
    ],
)
def test_inputs_and_labels_are_found(item, inputs, label) -> None:
    found = split_item(item)
    assert found[0] is inputs and found[1] == label


def test_parts_can_be_named() -> None:
    triple = (X, Y, "index 3")
    with pytest.raises(InputError, match="tuple of 3") as caught:
        split_item(triple)
    assert "inputs=0, labels=1" in caught.value.remedy
    assert split_item(triple, inputs=0, labels=1) == (X, Y)
    assert split_item({"a": X, "b": X, "id": "k", "y": 2}, inputs=["a", "b"], labels="y") == (
        {"a": X, "b": X},
        2,
    )
    assert split_item({"a": X, "b": X, "label": 2})[0] == {"a": X, "b": X}
    assert split_item((X, X, Y), labels=2) == ((X, X), Y)
    with pytest.raises(InputError, match="no entry 'lable'") as caught:
        split_item({"image": X, "label": 1}, labels="lable")
    assert "did you mean label" in caught.value.remedy


def test_what_becomes_which_tensor() -> None:
    grey = PIL.Image.fromarray(np.array([[0, 255], [51, 102]], dtype=np.uint8))
    assert torch.equal(as_tensors(grey, "x"), torch.tensor([[[0, 1], [0.2, 0.4]]]))
    assert torch.equal(as_tensors(grey, "x", label=True), torch.tensor([[0, 255], [51, 102]]))
    for mode, channels in (("1", 1), ("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 4), ("I;16", 1)):
        tensor = as_tensors(PIL.Image.new(mode, (5, 4)), "x")
        assert tensor.shape == (channels, 4, 5) and tensor.dtype == torch.float32
    assert as_tensors(np.zeros(3), "x").dtype == torch.float32
    assert as_tensors(np.zeros((2, 2), dtype=np.uint16), "x").dtype == torch.int32
    assert as_tensors(np.zeros(3, dtype=">f4")[::-1], "x").tolist() == [0, 0, 0]
    assert as_tensors(np.float64(2), "x").shape == as_tensors(np.array(2), "x").shape == ()
    assert as_tensors(np.float64(2), "x").dtype == torch.float32 and as_tensors(2.5, "x").dtype == torch.float32
    assert as_tensors(np.uint8(7), "x", label=True).dtype == torch.int64 and as_tensors(True, "x", label=True) == 1
    assert as_tensors([1, 2, 3], "x").tolist() == [1, 2, 3]
    assert set(as_tensors({"a": 1, "b": [X, X]}, "x")) == {"a", "b"}


@pytest.mark.parametrize(
    ("value", "label", "words"),
    [
        ("cat", True, "number the classes"),
        ("a photo", False, "tokenize"),
        (None, False, "NoneType is no tensor"),
        (np.array(["a"]), False, "is no tensor"),
        (object(), True, "object is no tensor"),
    ],
)
def test_what_holds_no_numbers_is_refused(value, label, words) -> None:
    with pytest.raises(InputError) as caught:
        as_tensors(value, "item 3: labels", label)
    assert words in str(caught.value) and "item 3: labels" in str(caught.value)


def test_items_that_differ_are_named() -> None:
    with pytest.raises(InputError, match="shape") as caught:
        collate([(torch.zeros(3), 0), (torch.zeros(4), 1)], [10, 11])
    assert caught.value.where == "item 11: inputs"
    with pytest.raises(InputError, match="float32") as caught:
        collate([(X, 0), (X, 1.5)], [0, 1])
    assert caught.value.where == "item 1: labels"
    with pytest.raises(InputError, match="holds a; item 0 holds a, b") as caught:
        collate([({"a": X, "b": X}, 0), ({"a": X}, 0)], [0, 1])
    with pytest.raises(InputError, match="NoneType"):
        collate([(X, 0), (X, None)], [0, 1])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([None, 12]), st.integers(-3, 3))
def test_padding_keeps_every_value_and_its_mask_counts_them(lengths, to, value) -> None:
    pairs = [(torch.arange(n) + 5, torch.arange(n)) for n in lengths]
    (padded, mask), labels = collate(pairs, range(len(pairs)), Padding(value=value, length=to))
    assert padded.shape == mask.shape == (len(lengths), to or max(lengths)) and mask.sum(1).tolist() == lengths
    for row, n in enumerate(lengths):
        assert padded[row, :n].tolist() == list(range(5, 5 + n)) and set(padded[row, n:].tolist()) <= {value}
        assert mask[row].tolist() == sorted(mask[row].tolist(), reverse=True)
        assert labels[row, :n].tolist() == list(range(n)) and set(labels[row, n:].tolist()) <= {-100}


def test_dicts_of_sequences_are_padded_by_their_mask_or_by_name() -> None:
    def item(n: int) -> dict[str, object]:
        return {"input_ids": torch.arange(n), "attention_mask": torch.ones(n, dtype=torch.int64), "image": X}

    inputs, labels = collate([(item(2), 0), (item(4), 1)], [0, 1])
    assert inputs["input_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]] and inputs["image"].shape == (2, 2, 3)
    assert inputs["attention_mask"].sum(1).tolist() == [2, 4] and labels.tolist() == [0, 1]
    inputs, _ = collate([({"input_ids": [1, 2], "kind": 1}, None), ({"input_ids": [3], "kind": 2}, None)], [0, 1], Padding())
    assert inputs["attention_mask"].tolist() == [[1, 1], [1, 0]] and inputs["kind"].tolist() == [1, 2]
    with pytest.raises(InputError, match="which of the inputs"):
        collate([({"words": [1, 2], "kind": 1}, None)], [0], Padding())
    with pytest.raises(InputError, match="5 positions, more than 4"):
        collate([(torch.zeros(5), None)], [0], Padding(length=4))


def test_a_collate_function_must_give_a_row_an_item() -> None:
    items = [(X, 0), (X, 1)]
    inputs, labels = custom_batch(lambda rows: {"a": torch.stack([r[0] for r in rows]), "label": [0, 1]}, items, None, None)
    assert inputs.shape == (2, 2, 3) and labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"shape \(3,\) for 2 items"):
        custom_batch(lambda rows: torch.zeros(3), items, None, None)
    with pytest.raises(InputError, match="collate_fn fails: KeyError"):
        custom_batch(lambda rows: rows[0][0]["x"] if False else {}["x"], items, None, None)
