"""UniFormer: convolution in shallow stages, self-attention in deep ones, for images and video."""

from __future__ import annotations

from tutelage.systems.uniformer.network import UniFormer

__all__ = ["UniFormer"]
