"""`python -m diffflow_ext` is the same program as `diffflow`."""

from __future__ import annotations

import sys

from diffflow_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
