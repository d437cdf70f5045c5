"""The site: the pages beside this file, some files from elsewhere, and the docstrings of the public names.

`make docs` builds it.
"""

import html
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from dalle_mini.version import __version__

project = "DALL·E mini"
release = __version__
html_title = project
html_theme = "furo"
html_static_path = ["site.css", "../build/mermaid.min.js"]  # `make docs` fetches the script from npm, once
html_css_files = ["site.css"]
html_copy_source = False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

nb_execution_mode = "cache"  # executed again only where it has changed
nb_execution_raise_on_error = True
nb_execution_timeout = -1  # a busy machine is no error
nb_merge_streams = True

default_role = "code"  # docstrings write names between single backticks
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = [("Options", "params_style")]
napoleon_use_rtype = False
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures, most of which are other libraries'

# These files are pages too. They are copied here, and links to them lead to the copies.
PAGES = {
    "tools/inference/pipeline.ipynb": "notebook.ipynb",
    "src/dalle_mini/assets/emoji/README.md": "model-card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
DOCS = Path(__file__).parent


def copy_pages():
    for file, page in PAGES.items():
        text = (DOCS.parent / file).read_text("utf-8").replace("](docs/", "](")
        copy = DOCS / page
        if not copy.exists() or copy.read_text("utf-8") != text:  # a page that is newer is built again
            copy.write_text(text, "utf-8")


def link_pages(app, name, source):
    for file, page in PAGES.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}").replace(f"]({file}", f"]({page}")


class Mermaid(SphinxDirective):
    """A diagram, drawn by the site's own copy of the script when the page is shown. Nothing comes from elsewhere."""

    has_content = True

    def run(self):
        text, root = html.escape("\n".join(self.content), quote=False), "../" * self.env.docname.count("/")
        drawn = f'<pre class="mermaid">{text}</pre><script defer src="{root}_static/mermaid.min.js"></script>'
        return [nodes.raw("", drawn, format="html")]


def setup(app):
    copy_pages()
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", link_pages)
