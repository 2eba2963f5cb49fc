"""How the documentation is built: Markdown pages, and the reference from the docstrings."""

from aheadless import __version__

project = "aheadless"
author = "aheadless contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

# The pages link to each other's headings.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Docstrings quote words of the protocol and of Python alike.
default_role = "code"

# `Message` is a name of `aheadless` and of `aheadless.admin`; annotations say it without the module.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"aheadless {release}"
html_show_copyright = False  # LICENSE says it
