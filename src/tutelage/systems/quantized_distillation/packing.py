"""Quantised weights as a file: indices packed or Huffman-coded, two floats a bucket, the rest as float32."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.reading import parse_json
from tutelage.systems.quantized_distillation.quantizers import bucketed, extent, nearest, unbucketed

_MAGIC = b"TQD1"


@dataclass(frozen=True)
class PackedWeights:
    """How a tensor is stored: its ``points`` [s] in [0, 1], by bucket of ``bucket`` values."""

    points: Tensor
    bucket: int = 256


def code_lengths(frequencies: np.ndarray) -> np.ndarray:
    """The Huffman code's length of each symbol, int64 [S]; symbols that do not occur have 0, a lone one has 1."""
    lengths = np.zeros(len(frequencies), np.int64)
    heap = [(int(f), [symbol]) for symbol, f in enumerate(frequencies) if f]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (f, first), (g, second) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[first + second] += 1
        heapq.heappush(heap, (f + g, first + second))
    return lengths


def _codes(lengths: np.ndarray) -> dict[int, tuple[int, int]]:
    """Canonical codes, ``symbol: (length, code)``: shorter first, then by symbol."""
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((int(n), s) for s, n in enumerate(lengths) if n):
        code <<= length - before
        codes[symbol], before = (length, code), length
        code += 1
    return codes


def huffman_encode(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """The symbols' canonical codes end to end, filled with zeros to whole bytes."""
    codes = _codes(lengths)
    table = np.zeros(len(lengths), np.int64)
    for symbol, (_, code) in codes.items():
        table[symbol] = code
    sizes, code = lengths[symbols], table[symbols]
    ends = np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(sizes.max(initial=0))):  # the last bit of every code, then the one before it, ...
        there = sizes > place
        bits[ends[there] - 1 - place] = (code[there] >> place) & 1
    return np.packbits(bits).tobytes()


def huffman_decode(data: bytes, count: int, lengths: np.ndarray) -> np.ndarray:
    """``count`` symbols, int64.

    Raises:
        InputError: the data ends inside a code, or holds none of the codes.
    """
    symbol_of = {key: symbol for symbol, key in _codes(lengths).items()}
    longest = int(lengths.max(initial=0))
    symbols, length, code = [], 0, 0
    for bit in np.unpackbits(np.frombuffer(data, np.uint8)).tolist():
        if len(symbols) == count:
            break
        length, code = length + 1, code << 1 | bit
        if length > longest:
            raise InputError("not a Huffman code of this table", where="packed weights", remedy="the file is damaged")
        if (length, code) in symbol_of:
            symbols.append(symbol_of[length, code])
            length, code = 0, 0
    if len(symbols) < count:
        raise InputError(f"{len(symbols)} of {count} symbols", where="packed weights", remedy="the file is cut short")
    return np.array(symbols, np.int64)


def pack(state: Mapping[str, Tensor], quantized: Mapping[str, PackedWeights], huffman: bool = False) -> bytes:
    """``state`` as bytes: the tensors named in ``quantized`` as indices of their points, all others whole.

    With ``huffman`` one code serves the indices of all tensors.
    """
    head: dict[str, object] = {"tensors": []}
    parts: list[bytes] = []
    indices: list[np.ndarray] = []
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        entry: dict[str, object] = {"name": name, "shape": list(value.shape)}
        if (how := quantized.get(name)) is not None:
            rows = bucketed(value, how.bucket)
            alpha, beta = extent(rows)
            index = unbucketed(nearest((rows - beta) / alpha, how.points.detach().cpu()), value).reshape(-1).numpy()
            entry |= {"levels": len(how.points), "bucket": how.bucket}
            parts += [
                how.points.detach().cpu().float().numpy().tobytes(),
                torch.cat([alpha, beta], 1).numpy().tobytes(),
            ]
            if huffman:
                indices.append(index)
            else:
                parts.append(_packed_bits(index, len(how.points)))
        else:
            kind = str(value.numpy().dtype)
            entry["dtype"] = kind
            parts.append(value.numpy().tobytes())
        head["tensors"].append(entry)  # type: ignore[attr-defined]
    if huffman and indices:
        symbols = np.concatenate(indices)
        lengths = code_lengths(np.bincount(symbols))
        head["lengths"] = lengths.tolist()
        parts.append(huffman_encode(symbols, lengths))
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([_MAGIC, len(text).to_bytes(4, "little"), text, *parts])


def unpack(data: bytes) -> dict[str, Tensor]:
    """The state that :func:`pack` was given, its quantised tensors on their points.

    Raises:
        InputError: not such a file, or cut short.
    """
    if data[:4] != _MAGIC or len(data) < 8:
        raise InputError("not a file of packed weights", where="packed weights", remedy="give what pack() wrote")
    begin = 8 + int.from_bytes(data[4:8], "little")
    try:
        head = parse_json(data[8:begin], "packed weights")
        reader = _Reader(data, begin)
        state, waiting = {}, []
        for entry in head["tensors"]:
            count = math.prod(entry["shape"])
            if "levels" not in entry:
                state[entry["name"]] = torch.from_numpy(reader.take(count, entry["dtype"])).view(entry["shape"])
                continue
            size = min(entry["bucket"], count)
            points = torch.from_numpy(reader.take(entry["levels"], "float32"))
            scale = torch.from_numpy(reader.take(2 * -(-count // size), "float32")).view(-1, 2)
            state[entry["name"]] = torch.empty(entry["shape"])
            if "lengths" in head:
                waiting.append((entry["name"], points, scale, size, count))
            else:
                bits = _width(entry["levels"])
                index = _unpacked_bits(reader.take(-(-count * bits // 8), "uint8"), count, bits)
                _fill(state[entry["name"]], index, points, scale, size)
        if waiting:
            total = sum(count for *_, count in waiting)
            symbols = huffman_decode(data[reader.offset :], total, np.array(head["lengths"], np.int64))
            for name, points, scale, size, count in waiting:
                _fill(state[name], symbols[:count], points, scale, size)
                symbols = symbols[count:]
        return state
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(f"damaged: {error}", where="packed weights", remedy="the file is cut short; write it again") from error


def size_report(state: Mapping[str, Tensor], quantized: Mapping[str, PackedWeights]) -> dict[str, float]:
    """Sizes in MB (10^6 bytes), each the length of what :func:`pack` writes: ``full``, ``packed``, ``huffman``, and
    ``gain`` and ``huffman_gain``, the full size over them."""
    full, packed, coded = (len(pack(state, how, h)) for how, h in (({}, False), (quantized, False), (quantized, True)))
    sizes = {"full": full / 1e6, "packed": packed / 1e6, "huffman": coded / 1e6}
    return sizes | {"gain": full / packed, "huffman_gain": full / coded}


@dataclass
class _Reader:
    data: bytes
    offset: int

    def take(self, count: int, dtype: str) -> np.ndarray:
        value = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += value.nbytes
        return value.copy()


def _width(levels: int) -> int:
    return max(1, (levels - 1).bit_length())


def _packed_bits(index: np.ndarray, levels: int) -> bytes:
    places = np.arange(_width(levels))
    return np.packbits((index[:, None] >> places & 1).astype(np.uint8)).tobytes()


def _unpacked_bits(data: np.ndarray, count: int, width: int) -> np.ndarray:
    bits = np.unpackbits(data)[: count * width].reshape(count, width).astype(np.int64)
    return (bits << np.arange(width)).sum(1)


def _fill(tensor: Tensor, index: np.ndarray, points: Tensor, scale: Tensor, bucket: int) -> None:
    rows = bucketed(points[torch.from_numpy(index)], bucket)
    tensor.copy_(unbucketed(scale[:, :1] * rows + scale[:, 1:], tensor))
