"""A TinyVGG from its weights alone: the sizes are those of the file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from tutelage import reading
from tutelage.distillation.export import load_weights
from tutelage.distillation.small_models import TinyVGG
from tutelage.errors import InputError

REMEDY = "say which network the weights are of: --network NAME (with --set option=value), or --network mine.py:NAME"


def tiny_vgg_from_weights(path: str | Path, image_size: int | None = None) -> TinyVGG:
    """The trained :class:`TinyVGG` whose weights the safetensors file holds.

    Args:
        path: the file, such as the ``student.safetensors`` of a training job.
        image_size: side of its pictures; None: the smallest that fits the weights (a pooling may drop an odd edge, so that
            up to three more pixels would fit as well).

    Raises:
        InputError: no such file, not safetensors, or the weights of another network.
    """
    try:
        shapes = {name: tuple(value.shape) for name, value in load(reading.read_bytes(path, 1 << 30)).items()}
    except SafetensorError as error:
        raise InputError(f"not readable safetensors: {error}", where=path, remedy="export the network again") from error
    first, last = shapes.get("conv_1_1.weight", ()), shapes.get("output.weight", ())
    blocks = sum(name.startswith("conv_") and name.endswith("_2.weight") for name in shapes)
    if len(first) != 4 or len(last) != 2 or not blocks or last[1] % first[0]:
        raise InputError("these are not the weights of a TinyVGG", where=path, remedy=REMEDY)
    channels, inputs = first[:2]
    side = round((last[1] // channels) ** 0.5)
    for _ in range(blocks):
        side = 2 * side + 4
    try:
        network = TinyVGG(last[0], channels, inputs, image_size or side, blocks)
        load_weights(network, path)
    except InputError as error:
        raise InputError(f"no TinyVGG of {image_size or side} pixels: {error.message}", where=path, remedy=REMEDY) from error
    return network
