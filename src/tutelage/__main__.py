"""``python -m tutelage`` is the command ``tutelage``."""

from __future__ import annotations

from tutelage.cli.main import main

if __name__ == "__main__":
    main()
