"""The distillation core: one trainer, and the protocols that teachers, methods and data speak.

The package is also the verb: ``tutelage.distill(student, teacher, data, method="kd")`` is ``distill.api.distill``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A module that can be called, so that the package and the verb share one name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from tutelage.distillation.api import distill

        return distill(*args, **options)


sys.modules[__name__].__class__ = _Verb
