"""PH-Reg (Chen et al., 2025): post-hoc registers for vision transformers, taught by a denoised copy of the network."""

from __future__ import annotations

from tutelage.networks.registers import RegisterViT, add_registers
from tutelage.systems.ph_reg.diagnostics import diagnose
from tutelage.systems.ph_reg.export import to_dinov2_with_registers
from tutelage.systems.ph_reg.method import PHReg, published_settings
from tutelage.systems.ph_reg.shifted_average import ShiftedAverage

__all__ = [
    "PHReg",
    "RegisterViT",
    "ShiftedAverage",
    "add_registers",
    "diagnose",
    "published_settings",
    "to_dinov2_with_registers",
]
