"""From what a dataset returns to tensors: which part of an item is its label, and how items become one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from tutelage.distillation.data import Tree, flatten_tree
from tutelage.errors import InputError, did_you_mean

LABEL_KEYS = ("labels", "label", "target")
"""Where a dict holds its labels, unless the caller names the entry."""

Key = str | int


@dataclass(frozen=True)
class Padding:
    """How sequences of different lengths become one tensor. Real positions have mask 1, padded ones 0.

    Attributes:
        value: what is written behind the end of an input.
        fields: the entries of a dict of inputs that are sequences; not needed where the input is one tensor.
        length: pad to this many positions; None: to the longest sequence of the batch.
        label: what is written behind the end of integer labels; -100 is what torch's losses ignore.
        mask: the entry of a dict of inputs that takes the mask [B, L] int64. An input that is one tensor becomes the
            pair (tensor, mask), which a network takes as two arguments.
    """

    value: float = 0.0
    fields: tuple[str, ...] = ()
    length: int | None = None
    label: int = -100
    mask: str = "attention_mask"


def split_item(item: Any, inputs: Key | Sequence[Key] | None = None, labels: Key | None = None) -> tuple[Any, Any]:
    """An item as (inputs, labels); labels are None where it has none.

    A pair is (input, label). A dict (or named tuple) holds its labels under ``labels``, ``label`` or ``target``; the
    other entries are the inputs, and a single one of them is the input itself. Anything else is an input.

    Args:
        item: what the dataset returned.
        inputs: the entry (a name or a position) that is the input, or a sequence of entries: then the inputs are a
            dict of them (of a tuple: a tuple). None: everything but the label.
        labels: the entry that is the label. None: as above.

    Raises:
        InputError: an entry that is not there, or a tuple of three or more whose label is not named.
    """
    if type(item) is tuple and len(item) == 2 and inputs is None and labels is None:
        return item
    if hasattr(item, "_asdict"):
        item = item._asdict()
    if isinstance(item, Mapping):
        if labels is None:
            labels = next((key for key in LABEL_KEYS if key in item), None)
        label = None if labels is None else _entry(item, labels)
        rest = {key: value for key, value in item.items() if key != labels}
        if inputs is None:
            return (next(iter(rest.values())) if len(rest) == 1 else rest), label
        if isinstance(inputs, (str, int)):
            return _entry(item, inputs), label
        return {key: _entry(item, key) for key in inputs}, label
    if not isinstance(item, (tuple, list)) or (labels is None and inputs is None and _is_vector(item)):
        return item, None
    if labels is None and inputs is None:
        if len(item) > 2:
            raise InputError(
                f"an item is a tuple of {len(item)}",
                where="data",
                remedy="name its parts: DatasetData(dataset, inputs=0, labels=1)",
            )
        return item[0], item[1] if len(item) == 2 else None
    label = None if labels is None else _entry(item, labels)
    if isinstance(inputs, (str, int)):
        return _entry(item, inputs), label
    keys = [key for key in range(len(item)) if key != labels] if inputs is None else list(inputs)
    taken = tuple(_entry(item, key) for key in keys)
    return taken[0] if len(taken) == 1 and inputs is None else taken, label


def _entry(item: Any, key: Key) -> Any:
    try:
        return item[key]
    except (KeyError, IndexError, TypeError):
        names = [str(name) for name in (item if isinstance(item, Mapping) else range(len(item)))]
        raise InputError(f"an item has no entry {key!r}", where="data", remedy=did_you_mean(str(key), names)) from None


def _is_vector(item: Sequence[Any]) -> bool:
    return len(item) != 2 and bool(item) and all(isinstance(one, (int, float)) for one in item)


# -- tensors ---------------------------------------------------------------------------------------------------------


def as_tensors(value: Any, where: str, label: bool = False) -> Tree:
    """``value`` as a tensor, or a nest of tensors.

    A PIL image becomes float32 [C, H, W] in 0..1; as a label it becomes int64 [H, W], its pixel values. Floats of 64
    bits become float32 (our choice); integers and booleans of a label become int64. Everything else keeps its dtype.

    Raises:
        InputError: text, None, or another object that has no numbers; ``where`` is named.
    """
    if isinstance(value, Tensor):
        return _settled(value.detach() if value.requires_grad else value, label)
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return _settled(torch.tensor(value), label)
    if isinstance(value, np.ndarray):
        return _settled(_from_numpy(value, where), label)
    if isinstance(value, Mapping):
        return {key: as_tensors(item, f"{where}.{key}", label) for key, item in value.items()}
    if isinstance(value, PIL.Image.Image):
        return _mask(value) if label else image_tensor(value)
    if isinstance(value, (tuple, list)):
        if value and all(isinstance(one, (bool, int, float)) for one in value):
            return _settled(torch.tensor(value), label)
        return tuple(as_tensors(item, f"{where}.{number}", label) for number, item in enumerate(value))
    raise _no_numbers(value, where, label)


def _no_numbers(value: object, where: str, label: bool) -> InputError:
    if isinstance(value, str) and label:
        return InputError(
            f"the label is the text {value[:40]!r}",
            where=where,
            remedy="number the classes from 0 and give the number",
        )
    if isinstance(value, str):
        remedy = "tokenize the text, or name the entries to use: DatasetData(dataset, inputs=…)"
        return InputError(f"the text {value[:40]!r} is no tensor", where=where, remedy=remedy)
    remedy = "return tensors, arrays, images or numbers, or name the entries to use: DatasetData(dataset, inputs=…)"
    return InputError(f"a {type(value).__name__} is no tensor", where=where, remedy=remedy)


def _from_numpy(array: np.ndarray, where: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise InputError(f"an array of {array.dtype} is no tensor", where=where, remedy="give an array of numbers")
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "float128": np.float64}.get(array.dtype.name)
    plain = np.ascontiguousarray(array, dtype=wider or array.dtype.newbyteorder("="))  # of at least one dimension
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy()).reshape(array.shape)


def _settled(tensor: Tensor, label: bool) -> Tensor:
    if tensor.dtype == torch.float64:
        return tensor.float()
    if label and not tensor.is_floating_point() and not tensor.is_complex():
        return tensor.long()
    return tensor


def image_tensor(image: PIL.Image.Image) -> Tensor:
    """A PIL image as float32 [C, H, W] in 0..1: one channel for grey, three for colour, four with transparency."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    array = np.array(image)
    tensor = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    return tensor.float() if image.mode == "F" else tensor.float().div_(65535)


def _mask(image: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).long()


# -- batches ---------------------------------------------------------------------------------------------------------


def collate(pairs: Sequence[tuple[Any, Any]], numbers: Sequence[int], padding: Padding | None = None) -> tuple[Tree, Tree]:
    """Items (inputs, labels), numbered ``numbers`` in messages, as one batch of tensors (inputs, labels).

    Raises:
        InputError: items that differ in structure, shape or dtype; the message names the item and the field.
    """
    names = [f"item {number}" for number in numbers]
    inputs = [as_tensors(pair[0], f"{name}: inputs") for pair, name in zip(pairs, names, strict=True)]
    mask, lengths = None, None
    if padding is not None:
        inputs, mask = _padded_inputs(inputs, names, padding)
        lengths = mask.sum(1).tolist()
    elif isinstance(inputs[0], Mapping) and "attention_mask" in inputs[0]:
        lengths = [len(item["attention_mask"]) for item in inputs]
        inputs = _masked_by_item(inputs, lengths)
    labels: Tree = None
    if all(type(pair[1]) in (int, np.int64) for pair in pairs):  # what most data sets give: no tensor for each
        labels = torch.tensor([int(pair[1]) for pair in pairs])
    elif any(pair[1] is not None for pair in pairs):
        listed = [as_tensors(pair[1], f"{name}: labels", label=True) for pair, name in zip(pairs, names, strict=True)]
        labels = _stack(_padded_labels(listed, lengths, padding or Padding()), names, "labels")
    stacked = _stack(inputs, names, "inputs")
    if padding is not None and mask is not None:
        stacked = {**stacked, padding.mask: mask} if isinstance(stacked, Mapping) else (stacked, mask)
    return stacked, labels


def _stack(items: Sequence[Tree], names: Sequence[str], path: str) -> Tree:
    """Equal nests of tensors stacked leaf by leaf; in a worker process the result lies in shared memory."""
    first = items[0]
    if isinstance(first, Tensor):
        shape, dtype = first.shape, first.dtype
        for name, item in zip(names, items, strict=True):
            if not isinstance(item, Tensor) or item.shape != shape or item.dtype != dtype:
                raise InputError(
                    f"{_shape(item)}; {names[0]} has {_shape(first)}",
                    where=f"{name}: {path}",
                    remedy="resize the items to one shape and dtype; for sequences give DatasetData(…, padding=Padding())",
                )
        return default_collate(list(items))
    for name, item in zip(names, items, strict=True):
        if type(item) is not type(first) or len(item) != len(first) or _keys(item) != _keys(first):
            raise InputError(
                f"holds {_keys(item)}; {names[0]} holds {_keys(first)}",
                where=f"{name}: {path}",
                remedy="give every item the same entries",
            )
    if isinstance(first, Mapping):
        return {key: _stack([item[key] for item in items], names, f"{path}.{key}") for key in first}
    return tuple(_stack([item[i] for item in items], names, f"{path}.{i}") for i in range(len(first)))


def _keys(item: Tree) -> str:
    if isinstance(item, Mapping):
        return ", ".join(sorted(map(str, item)))
    return f"{len(item)} parts" if isinstance(item, tuple) else "one tensor"


def _shape(item: Tree) -> str:
    if not isinstance(item, Tensor):
        return _keys(item)
    return f"shape {tuple(item.shape)} of {str(item.dtype).removeprefix('torch.')}"


def _pad(tensors: list[Tensor], value: float, length: int | None) -> list[Tensor]:
    """Tensors [L_i, …] as equally long ones."""
    padded = pad_sequence(tensors, batch_first=True, padding_value=value)
    if length is not None and length > padded.shape[1]:
        more = padded.new_full((len(padded), length - padded.shape[1], *padded.shape[2:]), value)
        padded = torch.cat([padded, more], 1)
    return list(padded)


def _padded_inputs(inputs: list[Tree], names: Sequence[str], padding: Padding) -> tuple[list[Tree], Tensor]:
    if isinstance(inputs[0], Tensor):
        columns: dict[str, list[Tensor]] = {"": inputs}
    elif isinstance(inputs[0], Mapping):
        fields = padding.fields or tuple(key for key in ("input_ids",) if key in inputs[0])
        if not fields:
            raise InputError("which of the inputs are sequences?", where="data", remedy="name them: Padding(fields=(…,))")
        columns = {key: [_entry(item, key) for item in inputs] for key in fields}
    else:
        raise InputError("a tuple of inputs cannot be padded", where="data", remedy="return a dict of inputs")
    lengths = [len(one) if one.ndim else 0 for one in next(iter(columns.values()))]
    if padding.length is not None and max(lengths) > padding.length:
        number = lengths.index(max(lengths))
        raise InputError(
            f"{lengths[number]} positions, more than {padding.length}",
            where=names[number],
            remedy="cut the sequences, or raise Padding(length=…)",
        )
    padded = {key: _pad(column, padding.value, padding.length) for key, column in columns.items()}
    width = padding.length or max(lengths)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    if "" in padded:
        return padded[""], mask
    return [{**item, **{key: padded[key][row] for key in padded}} for row, item in enumerate(inputs)], mask


def _masked_by_item(inputs: list[Tree], lengths: list[int]) -> list[Tree]:
    """Items that bring an attention mask: whatever is as long as it is padded with 0, the mask too."""
    if len(set(lengths)) == 1:
        return inputs
    ragged = [
        key
        for key in inputs[0]
        if all(isinstance(x.get(key), Tensor) and x[key].ndim and len(x[key]) == n for x, n in zip(inputs, lengths))
    ]
    padded = {key: _pad([item[key] for item in inputs], 0, None) for key in ragged}
    return [{**item, **{key: padded[key][row] for key in ragged}} for row, item in enumerate(inputs)]


def _padded_labels(labels: list[Tree], lengths: list[int] | None, padding: Padding) -> list[Tree]:
    """Integer labels [L_i] of sequences of these lengths, padded with the ignored label; others stay."""
    if lengths is None or [len(one) if isinstance(one, Tensor) and one.ndim == 1 else -1 for one in labels] != lengths:
        return labels
    if any(one.is_floating_point() for one in labels):
        return labels
    return _pad(labels, padding.label, padding.length)


def custom_batch(
    collate_fn: Callable[[list[Any]], Any],
    items: list[Any],
    inputs: Key | Sequence[Key] | None,
    labels: Key | None,
) -> tuple[Tree, Tree]:
    """What a user's ``collate_fn`` makes of the items, as (inputs, labels).

    Raises:
        InputError: it fails, or its tensors do not have one row an item.
    """
    try:
        batch = collate_fn(items)
    except Exception as error:
        raise InputError(
            f"collate_fn fails: {type(error).__name__}: {error}",
            where="data",
            remedy="try it on a list of items",
        ) from error
    first, second = split_item(batch, inputs, labels)
    found = as_tensors(first, "inputs"), None if second is None else as_tensors(second, "labels", label=True)
    for path, leaf in flatten_tree(found):
        if leaf.ndim == 0 or len(leaf) != len(items):
            raise InputError(
                f"collate_fn returned shape {tuple(leaf.shape)} for {len(items)} items",
                where=f"data: {path}",
                remedy="return tensors with one row an item",
            )
    return found
