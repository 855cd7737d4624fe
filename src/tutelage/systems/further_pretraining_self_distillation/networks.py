"""Networks with a pretext task: what may be pre-trained further. Each gives the feature of an input, and its pretext loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.masks import mask_tokens, random_mask
from tutelage.distillation.outputs import Output
from tutelage.errors import InputError
from tutelage.networks.mae import MaskedAutoencoder, reconstruction_error, standardize_patches
from tutelage.networks.positions import sincos_positions
from tutelage.networks.vit import VisionTransformer


class PretrainingNetwork(nn.Module):
    """The protocol. ``encoder`` is what is kept in the end; it reads whole inputs.

    ``forward(inputs)`` gives ``{"features": [B, dim]}``; with ``seeds`` [B], which name the masks, also ``{"pretext": [B]}``, the
    loss of each sample; ``features=False`` leaves the features out, which saves a pass.
    """

    @property
    def encoder(self) -> nn.Module:
        """Inputs -> features [B, dim], without any pretext task."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """The width of the features."""
        raise NotImplementedError

    def pretext_loss(self, inputs: Any, seeds: Tensor) -> Tensor:
        """The loss of each sample [B], under the masks that ``seeds`` [B] name."""
        raise NotImplementedError

    def heads(self, inputs: Any, seeds: Tensor | None, features: bool) -> Output:
        """What ``forward`` gives."""
        output = {} if seeds is None else {"pretext": self.pretext_loss(inputs, seeds)}
        if features or seeds is None:
            output["features"] = self.encoder(inputs)
        return output


class ImagePretraining(PretrainingNetwork):
    """A masked autoencoder: MAE's loss on ``ratio`` of the patches, and the class token behind the last norm.

    Args:
        encoder: a ``VisionTransformer`` without a head.
        in_chans, dim, depth, num_heads, standardize: of its ``MaskedAutoencoder``.
        ratio: the share of patches that are hidden.

    Raises:
        InputError: an encoder with a head or without a class token, or a ratio that hides no patch or all.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        in_chans: int = 3,
        dim: int = 48,
        depth: int = 1,
        num_heads: int = 4,
        standardize: bool = True,
        ratio: float = 0.75,
    ):
        super().__init__()
        if not isinstance(encoder.head, nn.Identity) or encoder.pool != "class":
            remedy = "VisionTransformer(…) with its class token and num_classes=0; a head belongs to fine-tuning"
            raise InputError("the encoder has a head, or no class token", where="encoder", remedy=remedy)
        self.mae, self.ratio = MaskedAutoencoder(encoder, in_chans, dim, depth, num_heads, standardize), ratio
        _check_mask(random_mask(torch.zeros(1, dtype=torch.int64), encoder.grid[0] * encoder.grid[1], ratio))

    @property
    def encoder(self) -> VisionTransformer:
        """The vision transformer."""
        return self.mae.encoder

    @property
    def dim(self) -> int:
        """See :class:`PretrainingNetwork`."""
        return self.mae.encoder.dim

    def forward(self, images: Tensor, seeds: Tensor | None = None, features: bool = True) -> Output:
        """See :class:`PretrainingNetwork`; ``images`` [B, C, H, W]."""
        return self.heads(images, seeds, features)

    def pretext_loss(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Mean squared error over the hidden patches."""
        mask = random_mask(seeds, len(self.mae.decoder.positions), self.ratio).to(images.device)
        return self.mae.loss(images, mask)


class ClassToken(nn.Module):
    """An encoder of ``transformers``, as one that gives the state of the first token [B, D]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        """The last state of the first token; ``inputs``: images, or a dict of ids and mask."""
        return (self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)).last_hidden_state[:, 0]


class WholeImage(ClassToken):
    """The encoder of a ``ViTMAEModel`` on all patches in their order: its mask hides none."""

    def forward(self, images: Tensor) -> Tensor:
        """The state of the class token [B, D]."""
        config: Any = self.model.config
        config.mask_ratio = 0.0
        order = torch.arange(self.model.embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=images.device)
        return self.model(images, noise=order.expand(len(images), -1)).last_hidden_state[:, 0]


class TransformersMAE(PretrainingNetwork):
    """A ``ViTMAEForPreTraining`` of ``transformers``, such as ``facebook/vit-mae-base``.

    A model that was built from a configuration may have positions of zeros; it gets the sine-cosine table.

    Args:
        model: the model, copied.
        ratio: the share of patches that are hidden; None: as the model's configuration says.

    Raises:
        InputError: another model, or a ratio that hides no patch or all.
    """

    def __init__(self, model: Any, ratio: float | None = None):
        super().__init__()
        if not all(hasattr(model, name) for name in ("vit", "decoder", "patchify")):
            raise InputError(f"{type(model).__name__} is no masked autoencoder", where="model", remedy="a ViTMAEForPreTraining")
        self.model = copy.deepcopy(model)
        self.ratio = float(self.model.config.mask_ratio if ratio is None else ratio)
        patches = self.model.vit.embeddings.patch_embeddings
        _check_mask(random_mask(torch.zeros(1, dtype=torch.int64), patches.num_patches, self.ratio))
        grid = tuple(side // part for side, part in zip(patches.image_size, patches.patch_size))
        for table in (self.model.vit.embeddings.position_embeddings, self.model.decoder.decoder_pos_embed):
            if not table.any():
                with torch.no_grad():
                    table[0, 1:] = sincos_positions(grid, table.shape[-1])

    @property
    def encoder(self) -> WholeImage:
        """The vision transformer, with the class token as its output."""
        return WholeImage(self.model.vit)

    @property
    def dim(self) -> int:
        """See :class:`PretrainingNetwork`."""
        return int(self.model.config.hidden_size)

    def forward(self, images: Tensor, seeds: Tensor | None = None, features: bool = True) -> Output:
        """See :class:`PretrainingNetwork`; ``images`` [B, C, H, W]."""
        return self.heads(images, seeds, features)

    def pretext_loss(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Mean squared error over the hidden patches, standardised where the configuration says so."""
        config = self.model.config
        mask = random_mask(seeds, self.model.vit.embeddings.patch_embeddings.num_patches, self.ratio)
        config.mask_ratio = self.ratio
        output = self.model(images, noise=mask.to(images))
        target = self.model.patchify(images)
        errors = reconstruction_error(output.logits, standardize_patches(target) if config.norm_pix_loss else target)
        return (errors * output.mask).sum(1) / output.mask.sum(1)


class TextPretraining(PretrainingNetwork):
    """A masked language model of ``transformers`` (any ``…ForMaskedLM``): cross-entropy of masked tokens, and the first token.

    Args:
        model: the model, copied.
        mask_id: the id of the mask token.
        special_ids: ids that are never masked: separators, the class token, padding.
        ratio: the share of tokens that are chosen.

    Raises:
        InputError: a model without an encoder of its own.
    """

    def __init__(self, model: Any, mask_id: int, special_ids: tuple[int, ...] = (), ratio: float = 0.15):
        super().__init__()
        if not isinstance(getattr(model, "base_model", None), nn.Module) or model.base_model is model:
            raise InputError(f"{type(model).__name__} has no encoder", where="model", remedy="a …ForMaskedLM of transformers")
        self.model, self.mask_id, self.special_ids, self.ratio = copy.deepcopy(model), mask_id, special_ids, ratio

    @property
    def encoder(self) -> ClassToken:
        """The encoder, with the first token as its output."""
        return ClassToken(self.model.base_model)

    @property
    def dim(self) -> int:
        """See :class:`PretrainingNetwork`."""
        return int(self.model.config.hidden_size)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, seeds: Tensor | None = None, features: bool = True
    ) -> Output:
        """See :class:`PretrainingNetwork`; both [B, L], without a mask every token is real."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.heads({"input_ids": input_ids, "attention_mask": real}, seeds, features)

    def pretext_loss(self, inputs: dict[str, Tensor], seeds: Tensor) -> Tensor:
        """Mean cross-entropy over the chosen tokens of each text; 0 for a text without any."""
        ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
        may = real & ~torch.isin(ids, torch.tensor(self.special_ids, dtype=ids.dtype, device=ids.device))
        masked, labels = mask_tokens(ids.cpu(), seeds, may.cpu(), self.mask_id, self.model.config.vocab_size, self.ratio)
        masked, labels = masked.to(ids.device), labels.to(ids.device)
        logits = self.model(input_ids=masked, attention_mask=inputs["attention_mask"]).logits
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        return losses.sum(1) / (labels != -100).sum(1).clamp_min(1)


class Classifier(nn.Module):
    """An adapted encoder with dropout and a new linear head, to be fine-tuned: inputs -> logits [B, classes].

    Args:
        network: whose encoder is copied.
        classes: how many.
        dropout: before the head.

    Raises:
        InputError: a network without an encoder.
    """

    def __init__(self, network: PretrainingNetwork, classes: int, dropout: float = 0.1):
        super().__init__()
        if not isinstance(network, PretrainingNetwork):
            raise InputError(f"{type(network).__name__} has no pretext task", where="network", remedy="an ImagePretraining")
        self.encoder = copy.deepcopy(network.encoder)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(network.dim, classes)

    def forward(self, inputs: Any) -> Tensor:
        """Logits."""
        return self.head(self.drop(self.encoder(inputs)))


def _check_mask(mask: Tensor) -> None:
    if not mask.any() or mask.all():
        found = f"it hides {int(mask.sum())} of {mask.shape[1]} patches"
        raise InputError(found, where="ratio", remedy="a share between 0 and 1 that leaves some patches and hides some")
