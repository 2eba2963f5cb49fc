"""The full-screen chat; needs the extra `tui`."""

from __future__ import annotations

import importlib

from aheadless._extras import needs

with needs("aheadless[tui]"):
    for _name in ("textual", "markdown_it"):
        importlib.import_module(_name)
