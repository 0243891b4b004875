"""``python -m trrg_sdk`` is ``trrg``."""

from __future__ import annotations

import sys

from trrg_sdk.cli import main

if __name__ == "__main__":
    sys.exit(main())
