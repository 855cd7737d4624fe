"""Data at any scale: batches, and datasets read lazily, item by item, by worker processes, in views that can be replayed.

Read in this order: ``base`` (batches, tensors in memory, the order of samples), ``seeding``, ``items``, ``dataset``,
``loader``, ``replay``, ``stream``, ``images``, ``hub``, ``sources``; then ``generated`` (noise and made samples), ``clips``,
``mixing`` and ``combined`` (several sources), ``repeated`` (several views of a sample side by side).
"""

from tutelage.distillation.data.base import (
    Batch,
    BatchOrder,
    ReplayableData,
    SampleOrder,
    TensorData,
    Tree,
    flatten_tree,
    hash64,
    map_tree,
    order_of,
    take_rows,
)

__all__ = [
    "Batch",
    "BatchOrder",
    "ReplayableData",
    "SampleOrder",
    "TensorData",
    "Tree",
    "flatten_tree",
    "hash64",
    "map_tree",
    "order_of",
    "take_rows",
]
