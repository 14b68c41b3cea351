"""How Sphinx builds the site. Nothing is fetched: no remote fonts, scripts or inventories."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import bayesuq

project = "bayesuq"
author = "the bayesuq developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = bayesuq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["docstrings", "mathml", "references", "reference_pages", "best"]
if "source" in tags:  # noqa: F821 - of Sphinx, `make docs` sets it: a [source] link at each name takes a while
    extensions.append("sphinx.ext.viewcode")
nitpicky = True  # names of bayesuq that do not exist are warnings, and these are errors
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
default_role = "py:obj"  # `x` in a docstring is code, as in Markdown, and a link where it names something

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_use_type_comments = False  # there are none to look for
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Reference", "notes_style"), ("References", "notes_style")]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "bayesuq"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
