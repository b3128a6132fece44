"""The documentation as a site, built by ``make docs``: what cannot be resolved is an error."""

import functools
import pkgutil

from sphinx.ext.napoleon import Config, GoogleDocstring

import flopcount

project = "flopcount"
author = "The flopcount authors"
project_copyright = author
version = release = flopcount.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"flopcount {version}"
html_show_sphinx = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what arguments are, with units and shapes
autodoc_default_options = {"members": True}

nitpicky = True
# What annotations are made of, as its own documentation has it elsewhere.
nitpick_ignore_regex = [
    ("py:class", r"abc\..*|collections\.abc\..*|fractions\..*|FloatArray|Terms")
]


def read_google_style(app, what, name, of, options, lines):
    """Sections of a docstring; that of a single value has none, whatever stands before a colon."""
    if what not in ("attribute", "data", "property"):
        config = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
        lines[:] = GoogleDocstring(lines, config, app, what, name, of, options).lines()


def find_where_it_is_defined(app, env, node, content):
    """A name that a package exports from a module of its own, such as ``flopcount.Device``."""
    try:
        definition = pkgutil.resolve_name(node["reftarget"])
        target = f"{definition.__module__}.{definition.__qualname__}"
    except (ImportError, AttributeError, ValueError):
        return None
    if target == node["reftarget"]:
        return None
    resolve = functools.partial(env.domains["py"].resolve_xref, env, node["refdoc"], app.builder)
    return resolve(node["reftype"], target, node, content)


def setup(app):
    """Read docstrings and references as this project writes them."""
    app.connect("autodoc-process-docstring", read_google_style)
    app.connect("missing-reference", find_where_it_is_defined)
