"""What modules from transformers models share: opening, rows of tensors, batches of like rows, saving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage import storage
from tutelage.errors import InputError, StaleError
from tutelage.modules.hf.loading import Source, processor_of, quiet, transformers, weights_of
from tutelage.modules.module_folder import read_head, write_head
from tutelage.modules.visual_module import METADATA_FILE, VisualModule, tensor_bytes
from tutelage.programs.types import Call, ModuleOutputs, RuntimeFailure
from tutelage.programs.values import Image

MANY = "many/"
"""Before the name of an input of which an image has several, stacked without a dimension of their own (Qwen-VL's patches)."""
ModelInputs = dict[str, Tensor]
IN_MEMORY = 256 << 20
"""Bytes of the calls' images that a batch holds in memory; more, a training job's, lie in a temporary file."""


@dataclass(frozen=True)
class HfConfig:
    """Where the model came from, the type of its numbers (``auto``: as stored), how many calls go into one forward pass, and
    where it runs; the module's version depends on the type alone. ``prepared``, a hash of how its processor was set when it was
    first opened, is no setting: it is filled in."""

    source: str = ""
    revision: str = ""
    dtype: str = "float32"
    rows: int = 16
    device: str = "cpu"
    prepared: str = ""

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Any:
        """The configuration from what JSON held."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})


@dataclass(frozen=True)
class ResizedConfig(HfConfig):
    """``square``: each image is first padded to a square, with grey on the right or below, and brought to so many pixels a
    side; 0: as it is. A training job needs images of one shape, and many processors keep an image's proportions (ViLT's, Grounding
    DINO's, Qwen-VL's)."""

    square: int = 0

    def sides(self, image: Image) -> tuple[int, int]:
        """The width and height of what the model sees, in pixels of the image."""
        side = max(image.width, image.height)
        return (side, side) if self.square else (image.width, image.height)

    def resize_with_padding(self, image: Image) -> PIL.Image.Image:
        """What the model sees."""
        picture = image.to_pil()
        if self.square:
            frame = PIL.Image.new("RGB", self.sides(image), (127, 127, 127))
            frame.paste(picture)
            picture = frame.resize((self.square, self.square), PIL.Image.Resampling.BICUBIC)
        return picture


class HfNetwork(nn.Module):
    """A transformers model as a network from named inputs to named heads."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the model's device and in its type, under the model's own names."""
        found = {}
        for name, value in batch.items():
            if name.startswith(MANY):
                name, value = name.removeprefix(MANY), value.flatten(0, 1)
            found[name] = value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
        return found


class HfModule(VisualModule):
    """A perception module round a transformers model.

    A subclass states ``families`` (model types), the class of its model, its network, how one call becomes a row of
    tensors (:meth:`row`) and how heads become values.
    """

    name = ""
    families: ClassVar[tuple[str, ...]] = ()
    ragged: ClassVar[frozenset[str]] = frozenset()
    """Inputs of numbers, not of ids, that are padded like ids."""
    Config = HfConfig
    config: Any

    def __init__(self, config: Any, network: nn.Module, processor: Any):
        super().__init__(config, network)
        self.processor = processor
        self.batch_size = 4 * config.rows  # so that rows of one length are found together

    @classmethod
    def supports(cls, family: str) -> bool:
        """Whether a model type of transformers can be this module."""
        return family in cls.families

    @classmethod
    def model_class(cls, kit: Any) -> Any:
        """The class of the package ``kit`` that loads the model."""
        raise NotImplementedError

    @classmethod
    def build_network(cls, config: Any, model: Any, processor: Any) -> nn.Module:
        """The network round the model."""
        raise NotImplementedError

    @classmethod
    def open(cls, config: Any, source: Source) -> Self:
        """The module from a model's folder or hub name; a branch or tag is recorded as its commit.

        Raises:
            MissingExtra, InputError: as :func:`~tutelage.modules.hf.opened`.
        """
        processor = processor_of(source)
        model = weights_of(source, cls.model_class(transformers()), config.dtype, config.device)
        commit = getattr(model.config, "_commit_hash", None) if config.revision else None
        preparation = config.prepared or storage.fingerprint(prepared(processor))
        config = replace(config, revision=commit or config.revision, prepared=preparation)
        return cls(config, cls.build_network(config, model, processor), processor)

    @property
    def version(self) -> str:
        """A hash of the class, the settings, how inputs are prepared, and every weight."""
        if self._version is None:
            state = self.network.state_dict()
            beside = ("source", "revision", "rows", "device")
            kept = {key: value for key, value in asdict(self.config).items() if key not in beside}
            tensors = [storage.fingerprint(key, tensor_bytes(state[key])) for key in sorted(state)]
            self._version = storage.fingerprint(type(self).__name__, kept, *tensors)
        return self._version

    # -- from calls to batches ---------------------------------------------------------------------------------------

    def row(self, call: Call) -> ModelInputs:
        """One call as tensors without a batch dimension; texts may differ in length."""
        raise NotImplementedError

    def _checked(self, call: Call) -> ModelInputs:
        """The call's row.

        Raises:
            InputError: more text than the model reads.
        """
        row = self.row(call)
        most = getattr(self.network.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and _length(row) > most:
            message = f"{_length(row)} tokens of text, the model reads at most {most}"
            raise InputError(message, where=self.name, remedy="ask in fewer words")
        return row

    def padding(self, name: str) -> tuple[str, int]:
        """Where ids of an input are padded, ``left`` or ``right``, and with what."""
        return "right", 0

    def collate(self, rows: Sequence[ModelInputs]) -> dict[str, Tensor]:
        """Rows as one batch; ids are padded to the longest.

        Raises:
            InputError: images of different shapes.
        """
        return {name: self._stacked(name, [row[name] for row in rows]) for name in rows[0]}

    def _stacked(self, name: str, values: list[Tensor]) -> Tensor:
        shapes = {value.shape for value in values}
        if len(shapes) == 1:
            return torch.stack(values)
        if self._is_image(name, values[0]):
            raise self._unlike(name, shapes)
        side, fill = self.padding(name)
        longest = [max(sizes) for sizes in zip(*shapes)]
        padded = []
        for value in values:
            missing: list[int] = []
            for axis in reversed(range(value.ndim)):
                room = longest[axis] - value.shape[axis]
                missing += [room, 0] if side == "left" and axis == value.ndim - 1 else [0, room]
            padded.append(F.pad(value, missing, value=fill))
        return torch.stack(padded)

    def _is_image(self, name: str, value: Tensor) -> bool:
        """Whether an input is made of the image, and must have one shape."""
        return (value.is_floating_point() and name not in self.ragged) or name.startswith(MANY)

    def _unlike(self, name: str, shapes: Iterable[torch.Size]) -> InputError:
        described = " and ".join(str(list(shape)) for shape in sorted(shapes))
        remedy = "a training job needs one shape, running does not: open the model with square=N, say 384"
        return InputError(
            f"{self.name}: images become inputs {name} of shapes {described}", where=self.config.source, remedy=remedy
        )

    def encode(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        """Calls as one batch, row i for call i; what the processor gives, by its own names.

        Raises:
            InputError: images of different shapes, or more text than the model reads.
            StorageError: there is no room for the temporary file of a large training job's images.
        """
        first = self._checked(calls[0])
        looks = {name: value for name, value in first.items() if self._is_image(name, value)}
        if len(calls) * sum(value.nbytes for value in looks.values()) <= IN_MEMORY:
            return self.collate([first, *map(self._checked, calls[1:])])
        kept = {name: _in_a_file((len(calls), *value.shape), value.dtype) for name, value in looks.items()}
        rows = []
        for number, call in enumerate(calls):
            row = self._checked(call)
            for name, whole in kept.items():
                value = row.pop(name)
                if value.shape != whole.shape[1:]:
                    raise self._unlike(name, {value.shape, whole.shape[1:]})
                whole[number] = value
            rows.append(row)
        return {name: kept[name] if name in kept else self._stacked(name, [row[name] for row in rows]) for name in first}

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every head, differentiable; at most ``config.rows`` rows at once."""
        count, size = len(next(iter(batch.values()))), self.config.rows
        parts = [self.network({k: v[at : at + size] for k, v in batch.items()}) for at in range(0, count, size)]
        return joined(parts)

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Values and heads without gradients: calls whose images have one shape together, those of like length side by
        side, so that little is padded. A call that cannot be put to the model fails alone. Heads are given where one batch
        held all calls in order."""
        rows: dict[int, ModelInputs] = {}
        found: list[tuple[list[int], ModuleOutputs]] = []
        for number, call in enumerate(calls):
            try:
                rows[number] = self._checked(call)
            except InputError as error:
                found.append(([number], ModuleOutputs([RuntimeFailure(error.message, where=error.where, remedy=error.remedy)])))
        order = sorted(rows, key=lambda i: (self._shape(rows[i]), _length(rows[i])))
        at = 0
        with torch.inference_mode():
            while at < len(order):
                like = [i for i in order[at : at + self.config.rows] if self._shape(rows[i]) == self._shape(rows[order[at]])]
                heads = self.network(self.collate([rows[i] for i in like]))
                found.append((like, self.decode(heads, [calls[i] for i in like])))
                at += len(like)
        return merged(found)

    def _shape(self, row: ModelInputs) -> tuple[Any, ...]:
        shapes = [(name, tuple(v.shape)) for name, v in row.items() if v.is_floating_point() or name.startswith(MANY)]
        return tuple(sorted(shapes))

    # -- files -------------------------------------------------------------------------------------------------------

    def _write(self, folder: Path, weights: str) -> Path:
        """The model as transformers itself writes it, its processor, and ``tutelage.json``, which is last."""
        with storage.atomic_folder(folder, last=METADATA_FILE) as place, quiet():
            self.network.model.save_pretrained(place)
            self.processor.save_pretrained(place)
            write_head(place / METADATA_FILE, self.metadata(), [file.name for file in place.iterdir() if file.is_file()])
        return folder

    @classmethod
    def from_folder(cls, config: Any, folder: Path) -> Self:
        """The module of ``config`` that was saved in ``folder``, on the CPU: move its network where it shall run."""
        config = replace(config, device="cpu")
        module = cls.open(replace(config, revision=""), Source(str(folder)))
        module.config = config  # it remembers where it first came from
        if read_head(folder / METADATA_FILE)["version"] != module.version:
            raise StaleError(
                f"the weights are not the ones that {METADATA_FILE} names", where=folder, remedy="save the module again"
            )
        return module

    def load_weights(self, folder: str | Path) -> Self:
        """As :meth:`VisualModule.load_weights`; it runs where this module does."""
        module = self.from_folder(self.config, Path(folder))
        module.network.to(self.network.model.device)
        module.config = self.config
        return module


def _in_a_file(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(storage.unnamed(math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def prepared(processor: Any) -> Any:
    """What changes how a processor prepares inputs: its settings, without paths and the names of classes."""
    noise = ("path", "class", "type", "version", "file")
    parts = [processor, *(getattr(processor, name, None) for name in ("image_processor", "tokenizer"))]
    found = {}
    for part in parts:
        if part is not None and hasattr(part, "to_dict"):
            plain = part.to_dict()
            found |= {k: repr(v) for k, v in plain.items() if not any(word in k for word in noise) and not isinstance(v, dict)}
    return found


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Heads of several batches as those of one; token logits [B, T, V] are padded to the longest answer."""
    if len(parts) == 1:
        return parts[0]
    found = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].ndim == 3:
            longest = max(value.shape[1] for value in values)
            values = [F.pad(value, (0, 0, 0, longest - value.shape[1])) for value in values]
        found[name] = torch.cat(values)
    return found


def merged(found: Sequence[tuple[list[int], ModuleOutputs]]) -> ModuleOutputs:
    """Answers to several batches in the order of the calls, each with the positions of its calls."""
    if len(found) == 1 and found[0][0] == sorted(found[0][0]):
        return found[0][1]
    count = sum(len(places) for places, _ in found)
    values: list[Any] = [None] * count
    dists: list[dict[str, float] | None] = [None] * count
    for places, outputs in found:
        for i, place in enumerate(places):
            values[place] = outputs.values[i]
            dists[place] = outputs.distributions[i] if outputs.distributions else None
    return ModuleOutputs(values, dists)


def _length(row: ModelInputs) -> int:
    return row["input_ids"].shape[-1] if "input_ids" in row else 0


def drop_batch_dim(values: Mapping[str, Any], skip: Sequence[str] = ()) -> ModelInputs:
    """What a processor gave for one call, without the batch dimension; what an image has several of is marked."""
    found: ModelInputs = {}
    for name, value in values.items():
        if isinstance(value, Tensor) and name not in skip:
            found |= {name: value[0]} if value.shape[0] == 1 else {MANY + name: value}
    return found
