"""Configuration of the documentation; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

import os
import tempfile
import warnings
from pathlib import Path

import gdml

HERE = Path(__file__).parent

# Pages are executed without results of earlier builds, and encode the sections that they share once.
_cache = tempfile.TemporaryDirectory(prefix="gdml-docs-")
os.environ["GDML_CACHE_DIR"] = _cache.name

# -- Project -----------------------------------------------------------------
project = "gdml"
author = "The gdml developers"
project_copyright = f"2026, {author}"
version = release = gdml.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",  # after napoleon, whose output it adds the types to
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
nitpicky = True

# -- API ---------------------------------------------------------------------
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints puts them beside the parameters
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_custom_sections = [("Writes", "Returns")]
typehints_defaults = "braces"
typehints_use_rtype = False
typehints_document_rtype = False  # docstrings describe what is returned
warnings.filterwarnings("ignore", message=".*set_application")  # of sphinx_autodoc_typehints, about itself
always_use_bars_union = True

# -- Links to other packages ---------------------------------------------------
# Inventories are fetched over the network at build time. Without one the build would warn once a package, and
# warnings are errors here; so they are fetched only where a network is sure to be there.
_inventories = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "sklearn": "https://scikit-learn.org/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
_online = bool(os.environ.get("READTHEDOCS") or os.environ.get("GDML_DOCS_INTERSPHINX"))
intersphinx_mapping = {name: (url, None) for name, url in _inventories.items()} if _online else {}

# nitpicky finds every broken link within gdml. Names of other packages are left out, since whether they are found
# depends on the network and on where a type was defined (pandas.core.frame.DataFrame), not on what is written here.
_builtin = "None|Ellipsis|bool|int|float|str|bytes|dict|list|set|tuple|type|object|property|[A-Z][A-Za-z]*(Error|Warning|Interrupt)"
nitpick_ignore_regex = [
    ("py:.*", r"(anndata|collections|matplotlib|mpl_toolkits|numpy|os|pandas|pathlib|scanpy|scipy|sklearn)\..*"),
    ("py:.*", r"(distributed|spatialdata|squidpy|torch|typing|xarray|zarr)\..*"),
    ("py:(class|data|exc|obj)", rf"({_builtin})"),
    ("py:class", r"gdml\.training\.familiarity\.Familiarity"),  # an attribute of TrainedModel, for gdml's own use
]

# -- Pages -------------------------------------------------------------------
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "alpha"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
# The tutorial is run when the documentation is built: what it shows is what this version does.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
suppress_warnings = ["myst-nb.lexer"]  # of pages that are not executed
# Threads that wait for each other give up their core: on busy machines training is several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# It runs in a folder of its own, where a relative path to the data would lead elsewhere.
if os.environ.get("GDML_DATA_DIR"):
    os.environ["GDML_DATA_DIR"] = str(Path(os.environ["GDML_DATA_DIR"]).expanduser().resolve())

# -- HTML --------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = f"gdml {release}"
html_static_path = ["_static"]
html_css_files = ["gdml.css"]
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2}
