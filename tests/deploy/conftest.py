"""What the tests of deploy/ share: reading YAML, and the process helper of the proxy's own tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "proxy"))
