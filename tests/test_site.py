"""The site as far as it can be checked without Quarto, which ignores a key that it does not know, a page that is not there and a reference that leads nowhere."""
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from processes import BIN, ROOT, environment, forked, run
from test_notebooks import NOTEBOOKS, cells

from l2init.internals.site import public_names

FILTER = BIN / "l2init_quarto_filter"
SITE = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
SIDEBARS = yaml.safe_load((ROOT / "_sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
PLAIN = {"CONTRIBUTING.md", "CHANGELOG.md", "404.md"} # pages that are no notebooks
PAGES = {n: cells(n) for n in NOTEBOOKS}

# Every key that the project uses, looked up in Quarto's reference; entries of lists have their list's name.
KEYS = """project project.type project.output-dir project.render metadata-files ipynb-filters execute execute.enabled lang bibliography link-citations
format format.html format.html.theme format.html.theme.light format.html.theme.dark format.html.respect-user-color-scheme format.html.toc format.html.toc-depth format.html.html-math-method
format.html.code-fold format.html.code-copy format.html.code-overflow format.html.fig-cap-location format.html.include-after-body
website website.title website.favicon website.search website.search.location website.search.type website.page-navigation website.navbar website.navbar.left website.navbar.left.href website.navbar.left.text
website.page-footer website.page-footer.left website.page-footer.right website.page-footer.right.href website.page-footer.right.text
website.sidebar website.sidebar.id website.sidebar.style website.sidebar.collapse-level website.sidebar.contents website.sidebar.contents.section website.sidebar.contents.contents""".split()
OPTIONS = {"fig-alt", "fig-cap", "tbl-cap", "label", "echo", "output", "code-fold"} # of cells, for Quarto


def source(cell): return "".join(cell["source"])


def options(cell):
    "Quarto's options at the top of a code cell, as it reads them."
    lines = re.match(r"(?:#\|.*\n?)*", source(cell)).group().splitlines()
    return yaml.safe_load("\n".join(l[3:] for l in lines if re.match(r"#\| ( |[\w-]+:)", l))) or {}


def code(page): return [c for c in PAGES[page] if c["cell_type"] == "code"]


def shown(page): return [c for c in code(page) if not re.search(r"^#\| *(hide|export|default_exp)\b", source(c), re.M)]


def prose(page):
    "The Markdown of a page, without code and formulas."
    text = "\n\n".join(source(c) for c in PAGES[page] if c["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```|^    .*?$|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.S | re.M)


def keys(node, path=""):
    if isinstance(node, list): return {k for n in node for k in keys(n, path)}
    if not isinstance(node, dict): return set()
    inside = lambda k: path if (path, k) == ("website.sidebar.contents", "contents") else f"{path}.{k}".lstrip(".") # sections may have sections
    return {k for name, n in node.items() for k in {f"{path}.{name}".lstrip(".")} | keys(n, inside(name))}


def sidebar(entries):
    for e in entries: yield from sidebar(e["contents"]) if isinstance(e, dict) else [e]


def bibliography():
    "Key -> surname of the first author and year, of every entry."
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", (ROOT / SITE["bibliography"]).read_text(encoding="utf-8"), re.S | re.M)
    assert len(dict(entries)) == len(entries), "a key is there twice"
    field = lambda body, name: re.search(rf"^  {name} = \{{(.*)\}},?$", body, re.M).group(1)
    assert all(field(body, "title") for _, body in entries)
    return {k: field(body, "author").split(",")[0] + field(body, "year") for k, body in entries}


def filtered(notebook):
    "What the filter makes of a notebook, as the program that Quarto calls, but in a process that need not import everything again."
    done = forked("l2init.internals.site:main", cwd=(ROOT / notebook).parent, stdin=ROOT / notebook)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_every_page_goes_through_the_filter(notebook):
    text = filtered(notebook)
    page = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert "l2init.github.io" not in text and "__main__" not in text, "a link that nbdev guesses, or a name that only the page's own notebook has"
    visible = "\n".join(map(source, page))
    assert "#| export" not in visible and "#| hide" not in visible and "default_exp" not in visible
    assert [options(c)["fig-alt"] for c in page if "fig-alt" in options(c)] == [options(c)["fig-alt"] for c in shown(notebook) if "fig-alt" in options(c)]
    assert not any("text/html" in o.get("data", {}) for c in page for o in c["outputs"]) # for which Quarto has a page load libraries from elsewhere


@pytest.mark.parametrize("notebook", [Path("nbs/17_cli.ipynb"), Path("nbs/10_modules.ipynb")], ids=str) # the second forgets what its module has registered
def test_the_filter_is_the_program_that_quarto_calls(notebook):
    with (ROOT / notebook).open(encoding="utf-8") as page: done = run([FILTER], stdin=page, cwd=ROOT / "nbs")
    assert done.returncode == 0, done.stderr[-2000:]
    without_ids = lambda page: re.sub(r'"id": "\w+"', "", page)
    assert without_ids(done.stdout) == without_ids(filtered(notebook))


def test_every_key_is_known():
    assert keys(SITE | {"website": SITE["website"] | {"sidebar": SIDEBARS}}) == set(KEYS) # none that Quarto would ignore, none that is listed and gone
    for page in NOTEBOOKS:
        for c in code(page): assert set(options(c)) <= OPTIONS, f"{page} {c['id']}"


def test_every_notebook_has_its_place():
    pages = [p for bar in SIDEBARS for p in sidebar(bar["contents"])]
    assert sorted(pages) == sorted({*map(str, NOTEBOOKS), *PLAIN} - {"404.md"}), "write_sidebars of l2init.internals.site, as in `make docs`, writes _sidebar.yml"
    assert SITE["project"]["render"][0] == "nbs/index.ipynb" # what Quarto's page at the site's address leads to
    assert {str(p.relative_to(ROOT)) for glob in SITE["project"]["render"] for p in ROOT.glob(glob)} == {*map(str, NOTEBOOKS), *PLAIN}
    assert SITE["metadata-files"] == ["_sidebar.yml"] and SITE["ipynb-filters"] == [FILTER.name] and FILTER.is_file()
    assert (ROOT / SITE["website"]["favicon"]).is_file()


def test_the_sidebars_are_those_of_the_notebooks():
    from l2init.internals.site import sidebars
    assert SIDEBARS == sidebars(ROOT), "write_sidebars of l2init.internals.site, as in `make docs`, writes _sidebar.yml"
    links = [e["href"] for e in SITE["website"]["navbar"]["left"]]
    assert [next(i for i, bar in enumerate(SIDEBARS) if href in sidebar(bar["contents"])) for href in links] == list(range(len(SIDEBARS))) # one lit at a time
    assert all((ROOT / e["href"]).is_file() for e in SITE["website"]["page-footer"]["right"])


def test_the_plain_pages_lead_somewhere():
    for page in PLAIN:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(r"^# |^title: ", text, re.M)
        for link in re.findall(r"\]\(([^)\s]+)\)", text): assert link.startswith("https://") or (ROOT / link).is_file(), link


def test_what_says_the_version_agrees():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    import l2init
    version = l2init.__version__
    assert cff["version"] == version and cff["license"] == "Apache-2.0" and {"cff-version", "message", "title", "authors"} <= set(cff)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert SITE["website"]["page-footer"]["left"] == f"l2init {version}, Apache-2.0"


def test_source_is_linked_only_where_there_is_a_repository():
    address = re.search(r"^git_url *=[ \t]*(.*)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M).group(1)
    assert ("[source](" in filtered(Path("nbs/internals/00_core.ipynb"))) == bool(address)


def test_what_is_folded():
    "Parameters and training loops are open, drawing is not."
    page = {c["id"]: source(c) for c in json.loads(filtered(Path("nbs/experiments/permuted_mnist.ipynb")))["cells"] if c["cell_type"] == "code"}
    parameters, = [c for c in code(Path("nbs/experiments/permuted_mnist.ipynb")) if "parameters" in c["metadata"].get("tags", [])]
    assert "code-fold: true" not in page[parameters["id"]]
    loop, = [c for c in json.loads(filtered(Path("nbs/howto/use_l2_init.ipynb")))["cells"] if "def train(" in source(c)]
    assert "code-fold: true" not in source(loop)
    assert any("code-fold: true" in t and "plt." in t for t in page.values())


TABLE = """
const cell = text => ({textContent: text, attributes: {}, listeners: {}, getAttribute(n) { return this.attributes[n] }, setAttribute(n, v) { this.attributes[n] = v },
  removeAttribute(n) { delete this.attributes[n] }, addEventListener(n, f) { this.listeners[n] = f }});
const rows = [["L2", "0.9 [0.8, 1.0]"], ["5+1", "−0.10"], ["CReLU", "0.15†"], ["4 + 2", ""]].map(r => ({cells: r.map(cell)}));
const body = {rows, append(...sorted) { this.rows = sorted }}, head = ["method", "accuracy"].map(cell);
const table = {tHead: {rows: [{cells: head}]}, tBodies: [body], querySelector: () => null};
const document = {querySelectorAll: () => [table]};
"""
SHOWN = """
const order = () => body.rows.map(r => r.cells[0].textContent).join(";");
const after = [];
for (const c of [1, 1, 0]) { head[c].listeners.click(); after.push(order() + ":" + head[c].attributes["aria-sort"]); }
console.log(after.join("\\n"));
"""


def test_a_click_sorts_a_table(tmp_path):
    "In Node, with a table that has what the script asks of one."
    assert (ROOT / SITE["format"]["html"]["include-after-body"]).name == "sortable.html"
    script, = re.findall(r"<script>(.*?)</script>", (ROOT / "nbs/sortable.html").read_text(encoding="utf-8"), re.S)
    assert "http" not in script and "import" not in script
    if not shutil.which("node"): pytest.skip("no Node")
    (tmp_path / "sort.js").write_text(TABLE + script + SHOWN, encoding="utf-8")
    done = run(["node", tmp_path / "sort.js"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["4 + 2;5+1;CReLU;L2:ascending", "L2;CReLU;5+1;4 + 2:descending", "4 + 2;5+1;CReLU;L2:ascending"]


def test_what_quarto_makes_is_ignored_by_git():
    "In the words that Quarto would else add to .gitignore."
    assert {"/.quarto/", "**/*.quarto_ipynb"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_the_themes_load_no_fonts_from_elsewhere():
    themes = SITE["format"]["html"]["theme"].values()
    assert all((ROOT / t[1]).is_file() and "$web-font-path: false;" in (ROOT / t[1]).read_text() for t in themes)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=str)
def test_links_and_references_lead_somewhere(page):
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", link): assert (ROOT / page.parent / link.split("#")[0]).is_file(), link
    labels = [options(c)["label"] for c in shown(page) if "label" in options(c)] + re.findall(r"\{#([\w-]+)\}", "\n".join(map(source, PAGES[page])))
    assert len(set(labels)) == len(labels)
    assert set(re.findall(r"@((?:fig|eq|tbl|sec)-[\w-]+)", text)) <= set(labels)
    assert all(options(c).get("fig-cap") for c in shown(page) if options(c).get("label", "").startswith("fig-")) # or it has no number
    cited = set(re.findall(r"(?<![\w.])@(?!(?:fig|eq|tbl|sec)-)([A-Za-z]\w+)", text))
    assert cited <= set(bibliography())


def test_the_bibliography_has_the_paper_of_every_method_and_stream():
    from l2init.methods import methods
    from l2init.streams import streams
    works = bibliography()
    assert all(re.sub(r"[ '-]", "", work) == key.rstrip("b") for key, work in works.items()) # a key is the first author and the year
    sources = {m.source for n, m in methods.items() if n != "plain"} | {s.source for s in streams.values()}
    named = {re.sub("['-]", "", name) + year for s in sources for name, year in re.findall(r"([A-Z][\w'-]+)(?: et al\.| and [A-Z]\w+) (\d{4})", s)}
    assert len(named) > 5 and named <= set(works)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=str)
def test_every_picture_has_alternative_text(page):
    for c in shown(page):
        pictures = sum("image/png" in o.get("data", {}) for o in c["outputs"])
        alt = options(c).get("fig-alt")
        assert bool(alt) == bool(pictures) and (pictures < 2 or alt.startswith("For each")), f"cell {c['id']}"
        if alt: assert len(alt) > 50 and '"' not in alt and "\n" not in alt # a quotation mark would end Quarto's attribute
    assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]\(", prose(page)))


@pytest.mark.parametrize("page", [n for n in NOTEBOOKS if n.parent.name == "reports"], ids=str)
def test_a_report_begins_with_its_finding(page):
    "In words or, for any study, computed; every figure has a caption, and where the numbers come from is one closed box."
    def said(c): return source(c) if c["cell_type"] == "markdown" else "".join(s for o in c["outputs"] for s in o.get("data", {}).get("text/markdown", []))
    finding, first = (next(i for i, c in enumerate(PAGES[page]) if good(c)) for good in
                      (lambda c: said(c).startswith("**Finding.** "), lambda c: any("image/png" in o.get("data", {}) for o in c.get("outputs", []))))
    assert finding < first
    assert all("fig-cap" in options(c) for c in shown(page) if "fig-alt" in options(c))
    boxes = sum("<details class='provenance'>" in s for c in code(page) for o in c["outputs"] for s in o.get("data", {}).get("text/html", []))
    assert boxes == (page.stem != "throughput") # which has one machine and no study


def tables(output):
    "The tables of an output, each as rows of text."
    data = {k: "".join(v) for k, v in output.get("data", {}).items() if k in ("text/html", "text/markdown")}
    for table in re.findall(r"<table.*?</table>", data.get("text/html", ""), re.S):
        yield [[re.sub(r"<.*?>", "", c).strip() for c in re.findall(r"<t[dh].*?</t[dh]>", r, re.S)] for r in re.findall(r"<tr.*?</tr>", table, re.S)]
    for table in re.findall(r"(?:^\|.*\n?)+", data.get("text/markdown", ""), re.M):
        yield [[c.strip() for c in l.strip("|").split("|")] for l in table.splitlines() if not re.match(r"\|\s*:?---", l)]


def repeated(table):
    "The heads of its columns that say the same in each of three or more rows."
    rows = [r for r in table[1:] if len(r) == len(table[0])]
    return [head for i, head in enumerate(table[0]) if len(rows) > 2 and len({r[i] for r in rows}) == 1]


@pytest.mark.parametrize("page", [n for n in NOTEBOOKS if n.parent.name == "reports"], ids=str)
def test_no_column_of_a_report_says_the_same_in_every_row(page):
    "What is the same everywhere is said once: `bold` of `l2init.plots` does so."
    html = "<table><tr><th>a</th><th>b</th></tr>" + "<tr><td>1</td><td><b>{}</b></td></tr>" * 3 + "</table>"
    assert [repeated(t) for t in tables({"data": {"text/html": [html.format(1, 2, 3)]}})] == [["a"]]
    assert [repeated(t) for t in tables({"data": {"text/markdown": ["| a | b |\n|---|---|\n", "| 1 | 2 |\n" * 3]}})] == [["a", "b"]]
    assert [(c["id"], found) for c in code(page) for o in c["outputs"] for t in tables(o) if (found := repeated(t))] == []


@pytest.mark.parametrize("page", NOTEBOOKS, ids=str)
def test_nothing_on_a_page_comes_from_elsewhere(page):
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:script|link|img|iframe)\b", prose(page))
    assert all(re.search(r'alt="[^"]{20,}"', tag) for c in shown(page) for o in c["outputs"] for tag in re.findall(r"<img [^>]*>", "".join(o.get("data", {}).get("text/html", []))))
    html = [s for c in shown(page) for o in c["outputs"] for t in ("text/html", "text/markdown") for s in o.get("data", {}).get(t, [])]
    assert not re.search(r"<(?:script|link|iframe)\b|src=(?!\"data:image/png;base64,)|@import", "".join(html)) # a picture may be in the page itself


def test_pages_are_light():
    "Quarto's own files aside, a page weighs about what its notebook does: pictures are stored as base64, a third larger than they are."
    sizes = [(ROOT / n).stat().st_size for n in NOTEBOOKS]
    assert max(sizes) < 1_200_000 and sum(sizes) < 20_000_000


def test_the_reference_has_every_public_name():
    said = "\n".join("".join(o["data"]["text/markdown"]) for c in code(Path("nbs/reference.ipynb")) for o in c["outputs"])
    modules = [importlib.import_module(f"l2init.{p.stem}") for p in sorted((ROOT / "l2init").glob("[a-z]*.py"))]
    missing = [f"{m.__name__}.{n}" for m in modules for n in m.__all__ if f"### {n} {{#{m.__name__.split('.')[-1]}-{n}}}\n" not in said and f"* `{n}`" not in said]
    assert len(modules) > 10 and missing == [], "execute nbs/reference.ipynb"
    assert "#### L2Init.attach\n" in said and "#### L2Init.forward\n" in said and "## l2init.internals" not in said
    assert " at 0x" not in said
    assert all(f"{{#{module}-{name}}}\n" in said for name, module in public_names().items()) # to which all pages link


def test_the_gallery_has_every_report():
    shown_there = "".join(s for c in code(Path("nbs/gallery.ipynb")) for o in c["outputs"] for s in o["data"]["text/html"])
    assert all(f'<a href="reports/{p.name}">' in shown_there for p in NOTEBOOKS if p.parent.name == "reports"), "execute nbs/gallery.ipynb"


def test_make_docs_without_quarto_says_how_to_get_it(tmp_path):
    "On a PATH that has make and bash but no Quarto."
    for tool in ("make", "bash", "echo", "touch"): (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    done = run(["make", "-o", "install", "docs"], cwd=ROOT, env=environment(PATH=str(tmp_path)))
    assert done.returncode != 0 and "make docs needs Quarto: get it from https://quarto.org" in done.stderr
