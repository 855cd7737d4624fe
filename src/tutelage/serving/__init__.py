"""Programs over HTTP: requests of many clients meet in the one scheduler, and their module calls in one batch.

Needs the extra ``serve``. :mod:`engine` runs programs, :mod:`service` leads a request to its answer, :mod:`app` is what
clients see, :mod:`door` is what they pass first, :mod:`process` is the life of the server.
"""

from __future__ import annotations

from importlib.util import find_spec

from tutelage.errors import MissingExtra

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Do nothing where the extra ``serve`` is installed.

    Raises:
        MissingExtra: a package of it is absent.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package, "serve")
