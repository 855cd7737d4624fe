"""The protocol of a perception module with a trainable network: encode calls, one forward, decode values."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from tutelage import reading, storage
from tutelage.errors import InputError, StaleError, did_you_mean
from tutelage.fields import check_dataclass
from tutelage.modules.module_folder import MAX_WEIGHTS, check_shapes, outline, read_head, write_head
from tutelage.programs.types import Call, Capabilities, ModuleOutputs, Signature

HEAD_TYPES = ("classes", "logit", "heatmap", "size", "tokens", "set")
"""What a head holds: class logits [..., C], one logit [...], heat-map logits [B, C, h, w], sizes [B, k, h, w], token
logits [B, L, V], or a set of boxes [B, Q, 5]: each the logit that it is one, then centre and size as shares of the image."""
METADATA_FILE = "tutelage.json"
"""What a saved module is, where its folder has a ``config.json`` of another library; elsewhere that file says it."""
WEIGHTS = ("model.safetensors", "weights.safetensors")
"""The names of a weights file: as :meth:`VisualModule.save_pretrained` writes it, and as :meth:`VisualModule.save` does."""


@dataclass(frozen=True, slots=True)
class CallLabel:
    """The target output of one module call: the value, the probability of each answer where there are several, and
    the confidence in 0..1 (1 for gold)."""

    value: Any
    probabilities: Mapping[str, float] | None = None
    confidence: float = 1.0
    weight: float = 1.0


@dataclass
class TrainingExamples:
    """Calls as tensors to learn from. ``inputs`` [N, ...] go into the network; ``targets[metadata]`` holds what that head's
    loss needs (:meth:`VisualModule.training_examples`); ``weights`` has one entry an answer (rows with several answers pad with
    zeros)."""

    inputs: dict[str, Tensor]
    targets: dict[str, dict[str, Tensor]]
    weights: Tensor

    def __len__(self) -> int:
        return len(self.weights)


class VisualModule:
    """A perception skill behind a typed call, with a network that can be taught.

    A subclass states ``name``, ``signature``, ``heads`` (each head's kind) and its ``Config``, builds ``network``, and
    says how calls become a batch (:meth:`encode`) and heads become values (:meth:`decode`). A module is immutable: a
    taught network makes a new module (:meth:`with_network`), with a new ``version``.
    """

    name: ClassVar[str]
    signature: ClassVar[Signature]
    heads: ClassVar[Mapping[str, str]]
    capabilities: Capabilities = Capabilities()
    symbolic: ClassVar[bool] = False
    batch_size: int = 128
    photometric_input: ClassVar[str | None] = None
    """The input that holds pixels (uint8, or float in 0..1) of a module whose answers do not depend on colours: replay may alter
    these (``SdvpOptions.augment_replay``). None: the answers do depend on them, or the network is given other values."""

    @dataclass(frozen=True)
    class Config:
        """Everything that shapes the network."""

        @classmethod
        def read(cls, plain: Mapping[str, Any]) -> Any:
            """The configuration from what JSON held."""
            return cls(**plain)

    def __init__(self, config: Any, network: nn.Module):
        self.config, self.network = config, network.eval()
        self._version: str | None = None

    @classmethod
    def build(cls, config: Any, seed: int) -> Self:
        """A module with a freshly initialised network."""
        raise NotImplementedError

    @property
    def version(self) -> str:
        """A hash of the class, the configuration and every weight."""
        if self._version is None:
            state = self.network.state_dict()
            tensors = [tensor_bytes(state[key]) for key in sorted(state)]
            self._version = storage.fingerprint(type(self).__name__, asdict(self.config), *tensors)
        return self._version

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """Calls as one batch of tensors, row i for call i."""
        raise NotImplementedError

    def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
        """Heads as values, one a call; the heads travel with them."""
        raise NotImplementedError

    def training_examples(self, calls: Sequence[Call], labels: Sequence[CallLabel] | None) -> TrainingExamples:
        """Calls and their labels as tensors: the inverse of :meth:`decode`. Without labels (replay) there are no
        targets. Calls that share an input may share a row.

        The default serves modules with one head of classes or one logit: row i is call i; targets are ``soft`` [N, C]
        and ``value`` [N], or ``probability`` [N]. Answers outside ``capabilities.vocabulary`` are refused.

        Raises:
            InputError: the head is of another kind, or a label is outside the vocabulary.
        """
        inputs = self.encode(calls)
        if labels is None:
            return TrainingExamples(inputs, {}, torch.ones(len(calls)))
        (head, kind), *others = self.heads.items()
        weights = torch.tensor([label.weight for label in labels], dtype=torch.float32)
        if kind == "logit" and not others:
            yes = [label.probabilities["yes"] if label.probabilities else float(bool(label.value)) for label in labels]
            return TrainingExamples(inputs, {head: {"probability": torch.tensor(yes)}}, weights)
        names = list(self.capabilities.vocabulary or ())
        if kind != "classes" or others or not names:
            raise InputError(
                f"{self.name} must say how its heads are taught", where=type(self).__name__, remedy="define exercise()"
            )
        hard, soft = class_targets(labels, names, self.name)
        return TrainingExamples(inputs, {head: {"hard": hard, "soft": soft}}, weights)

    def related_calls(self, call: Call) -> list[Call]:
        """Other calls that could be made about the same input: what self-distillation keeps, beyond what programs ask.
        The default knows none."""
        return []

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every head of the network on a batch, differentiable."""
        return self.network(batch)

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Values and heads from one forward pass, without gradients."""
        with torch.inference_mode():
            return self.decode(self.forward(self.encode(calls)), calls)

    def with_network(self, network: nn.Module) -> Self:
        """This module with another network of the same shape."""
        module = copy.copy(self)
        module.network, module._version = network.eval(), None
        return module

    def copy_network(self) -> nn.Module:
        """A copy of the network that can be trained without touching this module."""
        return copy.deepcopy(self.network)

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``weights.safetensors`` into ``folder``, each whole or not at all."""
        return self._write(Path(folder), "weights.safetensors")

    def save_pretrained(self, folder: str | Path, card: str = "") -> Path:
        """Write the module as the Hugging Face hub keeps models: ``config.json``, ``model.safetensors``, and the model card
        ``card`` as ``README.md`` where one is given (:func:`tutelage.sdvp.export.export` writes it from a run)."""
        folder = self._write(Path(folder), "model.safetensors")
        if card:
            storage.write_text(folder / "README.md", card)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The module of this class that :meth:`save_pretrained` (or :meth:`save`) wrote into ``folder``.

        Raises:
            InputError: ``folder`` is no module folder, it holds a module of another class, or its weights are absent
                or broken.
            StaleError: the weights are not those it was saved with.
        """
        file, metadata = read_metadata(folder)
        if metadata["class"] != cls.__name__:
            message = f"a {metadata['class']}, not a {cls.__name__}"
            raise InputError(message, where=folder, remedy="load it with its own class, or with tutelage.load")
        return cls.from_metadata(file, metadata)

    @classmethod
    def from_metadata(cls, file: Path, metadata: Mapping[str, Any]) -> Self:
        """The module that ``metadata``, read from ``file``, describes; its weights lie beside the file.

        Raises:
            InputError: not a configuration of this class, or its weights are absent or broken.
            StaleError: the weights are not those it was saved with.
        """
        try:
            config = cls.Config.read(metadata["config"])
            check_dataclass(config, f"{file}: config")
            network = outline(cls.build, config) if file.name == "config.json" else None
        except (TypeError, KeyError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            message = f"not a configuration of {cls.__name__}: {type(error).__name__}: {error}"
            raise InputError(message, where=file, remedy=json.dumps(metadata["config"])[:500]) from error
        if network is not None:
            check_shapes(network, _weights(file.parent))
        return cls.from_folder(config, file.parent)

    def metadata(self) -> dict[str, Any]:
        """What a folder says of the module in it."""
        head = {"format": "tutelage-module", "class": type(self).__name__, "config": asdict(self.config)}
        return head | {"name": self.name, "version": self.version}

    def _write(self, folder: Path, weights: str) -> Path:
        # each its own memory: safetensors refuses weights that two layers share
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.network.state_dict().items()}
        storage.write_bytes(folder / weights, save_tensors(state, {"format": "pt"} if weights == WEIGHTS[0] else None))
        write_head(folder / "config.json", self.metadata(), [weights])
        return folder

    @classmethod
    def from_folder(cls, config: Any, folder: Path) -> Self:
        """The module of ``config`` that was saved in ``folder``.

        Raises:
            InputError, StaleError: as :meth:`load_weights`.
        """
        return cls.build(config, seed=0).load_weights(folder)

    def load_weights(self, folder: str | Path) -> Self:
        """This module with the weights saved in ``folder``.

        Raises:
            InputError: the file is absent or not safetensors, or its tensors do not fit this network.
            StaleError: the weights are not those that ``config.json`` speaks of.
        """
        folder = Path(folder)
        file = _weights(folder)
        head = read_head(folder / "config.json")
        try:
            state = load_tensors(reading.read_bytes(file, MAX_WEIGHTS))
        except SafetensorError as error:
            raise InputError(f"not readable safetensors: {error}", where=file, remedy="save the module again") from error
        network = self.copy_network()
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"weights of another network: {error}", where=file, remedy="is it the right folder?") from error
        module = self.with_network(network)
        if head["version"] != module.version:
            raise StaleError("the weights are not the ones that config.json names", where=file, remedy="save the module again")
        return module


def class_targets(labels: Sequence[CallLabel], names: Sequence[str], where: str) -> tuple[Tensor, Tensor]:
    """Labels as class ids [N] and probabilities [N, C] over ``names``; a label without probabilities is certain.

    Raises:
        InputError: an answer that is not among ``names``.
    """
    index = {name: number for number, name in enumerate(names)}
    soft = torch.zeros(len(labels), len(names))
    hard = torch.zeros(len(labels), dtype=torch.long)
    for row, label in enumerate(labels):
        if label.value not in index:
            raise InputError(f"{label.value!r} is no answer of {where}", remedy=did_you_mean(str(label.value), list(names)))
        hard[row] = index[label.value]
        for answer, share in (label.probabilities or {label.value: 1.0}).items():
            soft[row, index[answer]] = share
    return hard, soft


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor of any type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_metadata(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file that says what the module in ``folder`` is, and what it says.

    Raises:
        InputError: ``folder`` is no module folder, or a bit of one of its files has changed.
    """
    file = Path(folder) / METADATA_FILE
    if not file.exists():
        file = Path(folder) / "config.json"
    return file, read_head(file)


def _weights(folder: Path) -> Path:
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[1])
