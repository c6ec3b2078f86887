"""Sphinx configuration: `make docs` builds the pages with warnings as errors."""

from keystore import __version__

project = "keystore"
author = "the keystore authors"
copyright = "2026, the keystore authors"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"keystore {release}"
myst_heading_anchors = 3
