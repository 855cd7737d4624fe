"""Texts and clips as tensors, and transcripts by greedy decoding or beam search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData, map_tree
from tutelage.distillation.tasks.categorical import IGNORED
from tutelage.errors import InputError
from tutelage.networks.beam_search import beam_search
from tutelage.networks.sampling import Sampled, Sampling
from tutelage.systems.pcpg.reader import EOS, PAD, SOS


class SequenceStudent(Protocol):
    """What PCPG can train: a network that encodes inputs once and decodes them several times.

    ``LipReader`` and ``tutelage.networks.encoder_decoder.EncoderDecoder`` are two. What ``encode`` gives is passed on as it is.
    """

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> Any:
        """The states of a batch: a tensor, or a tuple of tensors, whose first axis is the batch."""
        ...

    def decode(self, ids: Tensor, memory: Any, mask: Tensor | None = None) -> Tensor:
        """Logits [B, U, V] of the token after each of ``ids`` [B, U]."""
        ...

    def sample_from(
        self,
        memory: Any,
        mask: Tensor | None = None,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Tokens drawn one after the other; gradients flow through their log-probabilities."""
        ...


class CharacterVocabulary:
    """Characters as ids: padding 0, start 1, end 2, the blank 3, then the letters.

    Args:
        letters: each once; by default a to z and the apostrophe.

    Examples:
        >>> words = CharacterVocabulary("abc")
        >>> words.ids("a cab"), words.text([6, 4, 5, 2, 0])
        ([4, 3, 6, 4, 5, 2], 'cab')

    Raises:
        InputError: a letter twice, or a blank among them.
    """

    def __init__(self, letters: str = "abcdefghijklmnopqrstuvwxyz'"):
        if len(set(letters)) != len(letters) or " " in letters or not letters:
            raise InputError(f"letters {letters!r}", where="letters", remedy="each letter once; the blank is there already")
        self.letters = letters
        self._ids = {letter: i for i, letter in enumerate(" " + letters, EOS + 1)}

    def __len__(self) -> int:
        return EOS + 2 + len(self.letters)

    def ids(self, text: str) -> list[int]:
        """The ids of ``text``, the end token last.

        Raises:
            InputError: a character that is not in the vocabulary.
        """
        for letter in text:
            if letter not in self._ids:
                raise InputError(
                    f"{text!r} holds {letter!r}", where="texts", remedy=f"write in {self.letters!r}, or name further letters"
                )
        return [*(self._ids[letter] for letter in text), EOS]

    def text(self, ids: Iterable[int]) -> str:
        """The characters up to the end token; padding and start tokens are left out."""
        found = list[str]()
        for i in ids:
            if i == EOS:
                break
            if i > EOS:
                found.append((" " + self.letters)[i - EOS - 1])
        return "".join(found)


def sequence_data(
    clips: Tensor, texts: Sequence[str], vocabulary: CharacterVocabulary, lengths: Tensor | None = None
) -> TensorData:
    """Clips with their texts as training data: labels [N, U] are ids with the end token, -100 behind it.

    Args:
        clips: [N, C, T, H, W], or whatever the student encodes.
        texts: one a clip.
        vocabulary: of the texts.
        lengths: real frames of each clip [N]; None: all. With them, inputs are ``{"inputs": …, "mask": [N, T]}``.

    Raises:
        InputError: not one text and length a clip, a length of no frame or of more than T, or an unknown character.
    """
    if len(texts) != len(clips):
        raise InputError(f"{len(texts)} texts of {len(clips)} clips", where="texts", remedy="give one text a clip")
    rows = [vocabulary.ids(text) for text in texts]
    labels = torch.full((len(rows), max(map(len, rows), default=0)), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        labels[i, : len(row)] = torch.tensor(row)
    if lengths is None:
        return TensorData(clips, labels)
    frames = clips.shape[2] if clips.ndim == 5 else clips.shape[1]
    if lengths.shape != labels.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > frames:
        raise InputError(
            f"lengths {list(lengths.shape)} of {len(clips)} clips of {frames} frames",
            where="lengths",
            remedy=f"one length from 1 to {frames} a clip",
        )
    return TensorData({"inputs": clips, "mask": torch.arange(frames) < lengths[:, None]}, labels)


def inputs_of(inputs: Any) -> tuple[Tensor, Tensor | None]:
    """The inputs and the mask of a batch: a tensor, or ``{"inputs", "mask"}``.

    Raises:
        InputError: neither of them.
    """
    if isinstance(inputs, Tensor):
        return inputs, None
    if isinstance(inputs, dict) and "inputs" in inputs and set(inputs) <= {"inputs", "mask"}:
        mask = inputs.get("mask")
        return inputs["inputs"], None if mask is None else mask.bool()
    found = ", ".join(inputs) if isinstance(inputs, dict) else type(inputs).__name__
    raise InputError(f"inputs are {found}", where="inputs", remedy="a tensor, or {'inputs': …, 'mask': [B, T]}: see sequence_data")


@torch.no_grad()
def transcribe(
    student: SequenceStudent,
    data: TensorData,
    vocabulary: CharacterVocabulary,
    beams: int = 1,
    max_length: int = 32,
    batch_size: int = 256,
) -> list[str]:
    """What the student reads in each clip of ``data``, in eval mode.

    Args:
        student: the network.
        data: its labels, if any, are not read.
        vocabulary: of the texts.
        beams: 1 takes the likeliest character each time; more: beam search, which decodes every prefix anew.
        max_length: the most characters.
        batch_size: clips at a time.
    """
    was_training = isinstance(student, nn.Module) and student.training
    if isinstance(student, nn.Module):
        student.eval()
    sampling = Sampling(max_length, temperature=0.0, eos_id=EOS, pad_id=PAD)
    found = list[str]()
    for rows in torch.arange(len(data)).split(batch_size):
        inputs, mask = inputs_of(data.batch(rows, None).inputs)
        memory = student.encode(inputs, mask)
        if beams == 1:
            drawn = student.sample_from(memory, mask, sampling)
        else:

            def step(ids: Tensor, owner: Tensor, memory: Any = memory, mask: Tensor | None = mask) -> Tensor:
                states = map_tree(lambda tensor: tensor[owner], memory)
                return student.decode(ids, states, None if mask is None else mask[owner])[:, -1]

            drawn = beam_search(step, len(rows), sampling, beams, SOS)
        found += [vocabulary.text(ids) for ids in drawn.ids.tolist()]
    if was_training and isinstance(student, nn.Module):
        student.train()
    return found
