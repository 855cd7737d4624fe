"""A DINOv2 with learned registers as the model of ``transformers`` that knows registers."""

from __future__ import annotations

from typing import Any

import torch

from tutelage.errors import InputError, MissingExtra
from tutelage.networks.registers import RegisterViT


def to_dinov2_with_registers(network: RegisterViT) -> Any:
    """``Dinov2WithRegistersModel`` with the same weights: save it with ``save_pretrained``, read it with ``AutoModel``.

    Its output is [class, registers, patches]: the class token and the patches equal those of ``network``.

    Raises:
        InputError: the network is no ``Dinov2Model`` with registers.
        MissingExtra: ``transformers`` is not installed.
    """
    try:
        from transformers import Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    vit = network.vit if isinstance(network, RegisterViT) else network
    if not isinstance(network, RegisterViT) or not isinstance(vit, Dinov2Model):
        raise InputError(
            f"a {type(vit).__name__} is no DINOv2 with registers", where="network", remedy="save_weights writes any network"
        )
    known = vit.config.to_dict() | {"num_register_tokens": network.registers.shape[1]}
    known.pop("model_type", None)
    made = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**known))
    state = {**vit.state_dict(), "embeddings.register_tokens": network.registers.detach()}
    with torch.no_grad():
        made.load_state_dict(state)
    return made.eval()
