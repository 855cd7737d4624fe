"""Model compression via distillation and quantization (Polino, Pascanu, Alistarh, ICLR 2018, arXiv 1802.05668)."""

from __future__ import annotations

from tutelage.systems.quantized_distillation.method import DifferentiableQuantization, QuantizedDistillation
from tutelage.systems.quantized_distillation.packing import PackedWeights, pack, size_report, unpack
from tutelage.systems.quantized_distillation.quantizers import nearest, quantize, redistribute

__all__ = [
    "DifferentiableQuantization",
    "PackedWeights",
    "QuantizedDistillation",
    "nearest",
    "pack",
    "quantize",
    "redistribute",
    "size_report",
    "unpack",
]
