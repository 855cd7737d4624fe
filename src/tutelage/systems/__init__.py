"""Published teacher-to-student systems: one file a system; the registry finds them by listing this folder.

``create("hornet:mini", num_classes=10)`` builds the network of a backbone, ``published("hornet")`` lists its sizes, and
``published_settings("hornet:base-gf")`` gives the training settings of its paper.
"""

from __future__ import annotations

from typing import Any

__all__ = ["create", "published", "published_settings"]  # noqa: F822  (made on first use: they load torch)


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tutelage.systems import _backbone, _published

        return getattr(_published if name == "published_settings" else _backbone, name)
    raise AttributeError(f"module 'tutelage.systems' has no attribute {name!r}")
