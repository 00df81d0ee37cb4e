"""The site: `pip install -e ".[docs]" && python -m sphinx -W --keep-going -b html docs build/site`.

The pages are the ones that one reads in the repository; docs/_site adds what a site can do: the API from
the docstrings, every source file as a page, a link behind each equation's number and each name. Nothing is
asked of another host: formulas are MathML with a font of their own, search is Sphinx's.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from bitnet_ref import __version__ as release  # noqa: E402

project, author, version = "bitnet_ref", "The bitnet_ref authors", release
extensions = ["myst_nb", "_site.pages", "_site.links", "_site.source", "_site.maths"]
source_suffix = {".md": "myst-nb", ".myst": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
root_doc = "index"
exclude_patterns = ["pictures", "benchmarks/*.json"]
highlight_language = "text"          # a block without a name is a table or a picture in letters

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6             # as GitHub's
myst_url_schemes = {"http": None, "https": None, "mailto": None, "source": "source:{{path}}#{{fragment}}"}
nb_execution_mode = "off"            # notebooks keep what they printed; CI executes them elsewhere

python_maximum_signature_line_length = 88
add_module_names = False
smartquotes_action = "qe"            # quotes and ellipses; --help stays as it is typed
toc_object_entries = False           # thousands of names would be copied for every page

html_theme = "furo"
pygments_dark_style = "github-dark"  # the theme's own underlines names
html_title = "bitnet_ref"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).parent / "_site/static/scorer.js")
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
