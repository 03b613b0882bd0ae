"""Settings of the documentation site: ``make docs`` builds it into site/, where a warning is an error.

Pages are the Markdown files of this folder; the reference of each module is made from its docstrings. Nothing that
the site shows comes from a network: formulas become MathML while it is built, and the search is a file of the site.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import onpath

DOCS = Path(__file__).parent
API = DOCS / "api"
ROOT = DOCS.parent
PACKAGE = Path(onpath.__file__).parent

project, author = "Onpath", "the Onpath authors"
release = version = installed("onpath")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["plan.md"]
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "Onpath"
html_static_path = ["theme"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_math_renderer = "mathml"
highlight_language = "sh"
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "tango", "github-dark"
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True

autodoc_inherit_docstrings = False  # an override without words of its own keeps the promise that its base describes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
python_maximum_signature_line_length = 88

# The contents, by part. A page that does not exist yet is left out.
CONTENTS = {
    "Start": [
        "getting-started",
        "concepts",
        "text",
        "text-data",
        "images",
        "adapters",
        "diffusers",
        "choose-a-sampler",
    ],
    "Own states": ["scheduled-sampling", "es/scheduled-sampling", "drift", "policy-optimisation", "planning"],
    "See": ["results", "performance", "scale", "report"],
    "Do": ["extend", "coming-from"],
    "Look up": ["reference", "conventions", "papers", "decisions"],
    "Project": ["contributing", "changelog"],
}


def contents() -> str:
    """The navigation, for the end of the first page."""
    parts = []
    for caption, pages in CONTENTS.items():
        present = [page for page in pages if (DOCS / f"{page}.md").exists()]
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *present, "```"]))
    return "\n\n".join(parts)


def modules(app: Any) -> list[str]:
    """Every module with public names, in the order of the layers, which is that of README's file map.

    None under ``-t pages_only``, which builds in a few seconds.
    """
    if app.tags.has("pages_only"):
        return []
    listed = re.findall(r"^  ([\w/]+)\.py ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for name in listed if not name.endswith(("__init__", "__main__", "cli"))]
    return ["onpath." + name.replace("/", ".") for name in named if (PACKAGE / f"{name}.py").exists()]


def api_page(name: str) -> str:
    return f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"


def write_api(app: Any) -> None:
    """One page for each module, below api/, which is not kept in the repository."""
    API.mkdir(exist_ok=True)
    wanted = {f"{name}.rst": api_page(name) for name in modules(app)}
    for file in API.iterdir():
        if file.name not in wanted:
            file.unlink()
    for name, page in wanted.items():
        file = API / name
        if not file.exists() or file.read_text(encoding="utf-8") != page:
            file.write_text(page, encoding="utf-8")


def add_contents(app: Any, page: str, source: list[str]) -> None:
    """Appends what only the site needs, so that the files read well where Markdown is shown as it is."""
    if page == "index":
        source[0] += "\n\n" + contents() + "\n"
    if page == "reference":
        entries = [f"{name} <api/{name}>" for name in modules(app)]
        source[0] += "\n".join(["", "", "```{toctree}", ":hidden:", "", *entries, "```", ""])


# Docstrings are plain text: ``code`` or `code`, `>>>` examples, and lines such as "t: (B,), in [0, 1]."
FIELD = re.compile(
    r"^((?:[a-z]\w*(?:, )?)+|  `\w+`): (.*)$"
)  # an indented line goes on, or names a value in backquotes
CODE = re.compile(r"``?([^`]+)``?")
MARKS = re.compile(r"([*|\\_])")


def as_rst(text: str) -> str:
    """Words of a docstring with code in double backquotes and without marks that reStructuredText would obey."""
    item = re.match(r"( *\* )?", text)[0]
    pieces, place = [item], len(item)
    for code in CODE.finditer(text):
        pieces += [MARKS.sub(r"\\\1", text[place : code.start()]), f"``{code[1]}``"]
        place = code.end()
    return "".join([*pieces, MARKS.sub(r"\\\1", text[place:])])


def process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrites a docstring of this package in reStructuredText: each described field becomes an item of a list."""
    written: list[str] = []
    block: list[str] = []

    def close() -> None:
        if block:
            written.extend([as_rst(" ".join(block)), ""])
            block.clear()

    in_example = in_field = False
    for index, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.strip().startswith(">>>"))
        field = FIELD.match(line) if index else None
        ends_field = in_field and line[:1].isupper() and block[-1:] and block[-1].endswith(".")
        if in_example or field or ends_field or not line.strip() or line.startswith("Source: "):
            close()
            in_field = field is not None
        if in_example or not line.strip():
            written.append(line)
        else:
            indent = "  " if line.startswith(" ") else ""
            block.append(f"{indent}* `{field[1].strip(' `')}`: {field[2]}" if field else line.strip())
    close()
    lines[:] = written


def process_signature(app: Any, what: str, name: str, thing: Any, options: Any, text: str, returns: str) -> Any:
    """A field that is made anew for each object has no value to show."""
    return text and text.replace("<factory>", "..."), returns


def link_names(app: Any, tree: nodes.document, page: str) -> None:
    """Makes code that names something public lead to it: `onpath.rng.Key`, `rng.Key`, `Key` if it is the only one."""
    known = app.env.get_domain("py").objects
    classes = [name for name, entry in known.items() if entry.objtype == "class"]
    last = Counter(name.rsplit(".", 1)[-1] for name in classes)
    short = {name.rsplit(".", 1)[-1]: name for name in classes if last[name.rsplit(".", 1)[-1]] == 1}
    for literal in list(tree.findall(nodes.literal)):
        text = literal.astext()
        full = text if text.startswith("onpath.") or "." not in text else f"onpath.{text}"
        name = full if full in known else short.get(text)
        if name is None or isinstance(literal.parent, nodes.reference):
            continue
        uri = app.builder.get_relative_uri(page, known[name].docname) + "#" + known[name].node_id
        link = nodes.reference("", "", internal=True, refuri=uri, reftitle=name)
        literal.replace_self(link)
        in_table = any(isinstance(parent, nodes.entry) for parent in ancestors(link))
        link += nodes.literal("", in_few_words(name)) if in_table and known[name].objtype != "module" else literal


def ancestors(node: Any) -> Iterator[Any]:
    while node.parent is not None:
        node = node.parent
        yield node


def in_few_words(name: str) -> str:
    """A name that fits into a table: `UniformGrid`, `Masking.corrupt`, and a function with its module, `rng.bits`."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part[0].isupper()), len(parts) - 2)
    return ".".join(parts[first:])


def mathml(writer: Any, node: Any, as_block: bool) -> None:
    """Writes a formula; one that cannot be read is a warning, and so ends the build."""
    try:
        writer.body.append(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        logging.getLogger("onpath").warning("formula: %s", error, location=node)
    raise nodes.SkipNode


def visit_inline(writer: Any, node: Any) -> None:
    mathml(writer, node, as_block=False)


def visit_block(writer: Any, node: Any) -> None:
    mathml(writer, node, as_block=True)


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("builder-inited", write_api)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("doctree-resolved", link_names)
