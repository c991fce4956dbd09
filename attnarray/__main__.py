"""`python -m attnarray` is the command `attnarray`."""

from __future__ import annotations

import sys

from attnarray.cli import main

if __name__ == "__main__":
    sys.exit(main())
