"""Mamba-PKD (Medina et al., 2025, arXiv 2503.01727): progressive distillation into a group of small state-space classifiers."""

from __future__ import annotations

from tutelage.systems.mamba_pkd.method import MambaPKD
from tutelage.systems.mamba_pkd.network import ClassifierGroup, MambaBlock, MambaClassifier
from tutelage.systems.mamba_pkd.selective_scan import PATHS, fastest, selective_scan, time_paths

__all__ = ["PATHS", "ClassifierGroup", "MambaBlock", "MambaClassifier", "MambaPKD", "fastest", "selective_scan", "time_paths"]
