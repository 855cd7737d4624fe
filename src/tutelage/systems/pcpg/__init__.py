"""PCPG: pseudo-convolutional policy gradient for sequences (Luo, Yang, Shan, Chen, 2020, arXiv 2003.03983)."""

from __future__ import annotations

from tutelage.distillation.edit_distance import error_rates
from tutelage.systems.pcpg.loss import edit_rewards, make_kernel, pool_windows, window_loss
from tutelage.systems.pcpg.method import PCPG
from tutelage.systems.pcpg.reader import SIZES, FlatFront, LipReader, VideoFront, lip_reader
from tutelage.systems.pcpg.synthetic_lips import Lips, lexicon, lips
from tutelage.systems.pcpg.text import CharacterVocabulary, SequenceStudent, sequence_data, transcribe

__all__ = [
    "PCPG",
    "SIZES",
    "CharacterVocabulary",
    "FlatFront",
    "LipReader",
    "Lips",
    "SequenceStudent",
    "VideoFront",
    "edit_rewards",
    "error_rates",
    "lexicon",
    "lip_reader",
    "lips",
    "make_kernel",
    "pool_windows",
    "sequence_data",
    "transcribe",
    "window_loss",
]
