"""Programs over HTTP: requests of many clients meet in the one scheduler, and their module calls in one batch.

Needs the extra ``serve``. :mod:`engine` runs programs, :mod:`app` is what clients see, :mod:`door` is what they pass
first, :mod:`process` is the life of the server.
"""
