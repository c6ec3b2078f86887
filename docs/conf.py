"""Sphinx configuration: `make docs` builds the pages with warnings as errors."""

import sys
from pathlib import Path

from keystore import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "keystore"
author = "the keystore authors"
copyright = "2026, the keystore authors"
release = __version__
extensions = ["myst_parser", "generated"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"keystore {release}"
myst_heading_anchors = 3
