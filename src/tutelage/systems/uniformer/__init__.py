"""UniFormer: convolution in shallow stages, self-attention in deep ones, for images and video."""

from __future__ import annotations

from tutelage.systems.uniformer.network import UniFormer
from tutelage.systems.uniformer.token_labels import DenseLabeler, TokenLabels

__all__ = ["DenseLabeler", "TokenLabels", "UniFormer"]
