"""What the build does beyond pyproject.toml: it makes the README fit for an index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Give the package the README as its long description, without links that would be dead in an index."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the long description."""
        readme = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(readme)}


def for_index(readme: str) -> str:
    """Return a README without pictures and links whose targets are files: an index has none beside it.

    As there is no address where the files of this project are known to be, none is made up: pictures go, and links
    become the words that they are on.
    """
    files = r"\((?!https?://)[^)]*\)"
    without_pictures = re.sub(rf"^!\[[^\]]*\]{files}\n\n", "", readme, flags=re.MULTILINE)
    return re.sub(rf"\[([^\]\n]*)\]{files}", r"\1", without_pictures)
