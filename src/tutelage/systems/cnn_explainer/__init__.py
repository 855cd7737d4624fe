"""CNN Explainer: a web page that runs a small convolutional network in the browser and explains every number of it."""

from __future__ import annotations

from tutelage.systems.cnn_explainer.explainer import CNNExplainer, TinyVGG, export_explainer, load_explained
from tutelage.systems.cnn_explainer.layers import PageLayer, read_layers, to_network

__all__ = ["CNNExplainer", "PageLayer", "TinyVGG", "export_explainer", "load_explained", "read_layers", "to_network"]
