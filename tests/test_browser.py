"""The rendered site as a reader walks it, in headless Chromium. Needs the extra `site` (pip install -e ".[site]"), Chromium on the PATH or Playwright's own, and, for the real site, Quarto."""
import functools
import http.server
import re
import shutil
import threading
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import pytest
from processes import ROOT, run

pytestmark = pytest.mark.slow
WIDE, NARROW = 1400, 400 # pixels


# What a page's letters and buttons look like, asked of the browser; `luminance` to `covered` judge it.
LETTERS = """() => {
  const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/^rgba.*, 0\\)$|transparent/.test(c)) return c } return "rgb(255, 255, 255)" };
  const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
  return [...document.querySelectorAll("main h1, main h2, main p, main li, main a, main td, main th, main summary, main code, nav a")]
    .filter(e => e.getClientRects().length && own(e))
    .map(e => [e, getComputedStyle(e)])
    .map(([e, s]) => [s.color, back(e), parseFloat(s.fontSize) >= (s.fontWeight >= 700 ? 18.6 : 24) || !e.closest("main"), e.textContent.trim().slice(0, 40)]) }"""
BUTTONS = """() => {
  const boxes = node => [...node.getClientRects()].map(r => [r.left, r.top, r.right, r.bottom]);
  const buttons = [...document.querySelectorAll("main button")].map(b => boxes(b)).flat(), letters = [];
  const walk = document.createTreeWalker(document.querySelector("main"), 4);
  for (let n; n = walk.nextNode();) {
    if (n.parentElement.closest("button, script, style") || !n.textContent.trim()) continue;
    const range = document.createRange(); range.selectNodeContents(n);
    const frame = n.parentElement.closest("pre")?.getBoundingClientRect(); // what is scrolled out of it is not to be seen
    for (const [l, t, r, b] of boxes(range)) letters.push([l, t, frame ? Math.min(r, frame.right) : r, b, n.textContent.trim().slice(0, 40)]) }
  return [buttons, letters] }"""


def luminance(color):
    "Of `rgb(r, g, b)`, as WCAG 2 defines it."
    parts = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
    red, green, blue = (v / 12.92 if v <= .03928 else ((v + .055) / 1.055) ** 2.4 for v in parts)
    return .2126 * red + .7152 * green + .0722 * blue


def contrast(one, other):
    "From 1, the same, to 21, black on white."
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + .05) / (low + .05)


def covered(buttons, letters, least=2):
    "The texts that a button lies on, by more than `least` pixels in both directions."
    return [text for *box, text in letters for b in buttons
            if min(box[2], b[2]) - max(box[0], b[0]) > least and min(box[3], b[3]) - max(box[1], b[1]) > least]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@contextmanager
def served(folder):
    "The address at which `folder` is served, on loopback."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{server.server_port}/"
        finally: server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `site`")
    with playwright.sync_playwright() as p:
        own = p.chromium.executable_path
        path = shutil.which("chromium") or (own if shutil.which(own) else None)
        if not path: pytest.skip("needs Chromium: on the PATH, or by `playwright install chromium`")
        chromium = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Walk:
    "A reader's way through a site; `complaints` are what should not have been."
    def __init__(self, browser, home):
        self.home, self.complaints, self.downloaded, self.page = home, [], set(), browser.new_page(viewport=dict(width=WIDE, height=900))
        self.page.route("**/favicon.ico", lambda route: route.fulfill(status=204)) # asked for by the browser, not by a page
        self.page.on("request", self.requested)
        self.page.on("response", lambda r: self.complain(f"{r.url}: status {r.status}") if r.status >= 400 else None)
        self.page.on("console", lambda m: self.complain(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.complain(f"script: {e}"))

    def complain(self, what): self.complaints.append(f"{urlsplit(self.page.url).path}: {what}")

    def requested(self, request):
        if urlsplit(request.url).scheme not in ("data", "blob") and not request.url.startswith(self.home): self.complain(f"a request leaves for {request.url}")

    def visit(self, address):
        "A page: it is there, has a title and a text, its pictures are loaded and have alternative text, and it can be read at both widths."
        self.page.goto(address, wait_until="networkidle")
        if not self.page.locator("main h1").count(): self.complain("has no title")
        for image in self.page.locator("main img").all():
            image.scroll_into_view_if_needed()
            if not image.evaluate("i => i.decode().then(() => i.naturalWidth > 0, () => false)"): self.complain(f"a picture is not loaded: {image.get_attribute('src')[:80]}")
            if not image.get_attribute("alt"): self.complain(f"a picture has no alternative text: {image.get_attribute('src')[:80]}")
        for width in (NARROW, WIDE):
            self.page.set_viewport_size(dict(width=width, height=900))
            if (needed := self.page.evaluate("document.documentElement.scrollWidth")) > width: self.complain(f"is {needed} pixels wide at {width}")
            if paragraphs := self.page.locator("main p:visible").all():
                size, across = paragraphs[0].evaluate("p => [parseFloat(getComputedStyle(p).fontSize), p.clientWidth]")
                if size < 14 or across < .6 * NARROW: self.complain(f"cannot be read at {width}: letters of {size} pixels, lines of {across}")
            for text in covered(*self.page.evaluate(BUTTONS)): self.complain(f"a button covers {text!r} at {width}")
        self.colors()
        for link in self.page.locator("main a[download]").all(): self.download(urljoin(self.page.url, link.get_attribute("href")))

    def colors(self):
        "Letters can be told from what is behind them, by day and by night, as WCAG 2 asks: by 4.5, by 3 where they are large or only lead elsewhere."
        for theme in ("dark", "light"): # the second is the one to go on with
            self.page.emulate_media(color_scheme=theme)
            self.page.reload(wait_until="networkidle")
            for color, behind, large, text in self.page.evaluate(LETTERS):
                if contrast(color, behind) < (3 if large else 4.5): self.complain(f"{text!r} is {color} on {behind} with the {theme} theme")

    def download(self, address):
        "A link to a file gives one that is not empty; each is asked for once."
        if address in self.downloaded: return
        self.downloaded.add(address)
        answer = self.page.request.get(address)
        if answer.status != 200 or not answer.body(): self.complain(f"the download {address} does not work")

    def front(self):
        "The path of the page that the site's address leads to; a page that leads elsewhere has no title of its own."
        self.page.goto(self.home)
        self.page.locator("main h1").first.wait_for()
        return urlsplit(self.page.url).path

    def search(self, words, leads_to):
        "Search for `words` and follow the first hit that leads to `leads_to`."
        self.page.goto(self.home, wait_until="networkidle")
        self.page.locator("#quarto-search button.aa-DetachedSearchButton, #quarto-search input").first.click()
        self.page.locator(".aa-Input").last.fill(words)
        hit = self.page.locator(f"a.search-result-link[href*='{leads_to}']").first
        try: hit.wait_for(timeout=60_000) # milliseconds, against hanging
        except Exception: return self.complain(f"the search for {words} does not lead to {leads_to}")
        hit.click()
        self.page.wait_for_load_state("networkidle")
        if leads_to not in self.page.url or words.lower() not in self.page.locator("main").inner_text().lower(): self.complain(f"the hit for {words} is not about it")

    def everything(self, words, leads_to):
        "The front page, each entry of the bar at the top, each entry of the sidebar that it leads to, and a search."
        def entries(where):
            found = self.page.locator(f"{where} a[href]").evaluate_all("links => links.map(a => a.href)")
            return [urljoin(self.page.url, e).split("#")[0] for e in found]
        self.page.goto(self.home, wait_until="networkidle")
        self.page.locator("main h1").first.wait_for()
        pages = entries("#quarto-sidebar")
        for address in (top := [a for a in entries(".navbar") if a.endswith(".html")]):
            self.page.goto(address, wait_until="networkidle")
            if address not in (side := entries("#quarto-sidebar")): self.complain(f"{address} is not in the sidebar that it leads to")
            pages += side
        pages = list(dict.fromkeys([*pages, *top]))
        for address in pages: self.visit(address)
        self.search(words, leads_to)
        return pages


def test_the_rendered_site(browser):
    if not shutil.which("quarto"): pytest.skip("needs Quarto on the PATH: https://quarto.org/docs/get-started")
    before = (ROOT / ".gitignore").read_bytes()
    done = run(["make", "docs"], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (ROOT / ".gitignore").read_bytes() == before # to which Quarto adds what is not there
    files = [p for p in (ROOT / "_docs").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 25_000_000
    for page in (p for p in files if p.suffix == ".html"): assert page.stat().st_size + sum(p.stat().st_size for p in files if p.parent.parent == page.with_name(f"{page.stem}_files")) < 1_500_000, page
    with served(ROOT / "_docs") as home:
        walk = Walk(browser, home)
        assert walk.front() == "/nbs/index.html"
        pages = walk.everything("continual backprop", "resets")
        assert walk.complaints == []
        assert len(pages) >= len(list((ROOT / "nbs").rglob("*.ipynb")))
        assert len([d for d in walk.downloaded if d.endswith(".ipynb")]) >= len(list((ROOT / "nbs").rglob("*.ipynb")))


# The walk itself, on a site of two pages that is made here.
PAGE = """<!doctype html><title>{name}</title><meta name="viewport" content="width=device-width">
<div id="quarto-search"><button class="aa-DetachedSearchButton">Search</button></div>
<style>@media (prefers-color-scheme: dark) {{ body {{ background: #222; color: white }} a {{ color: #9cf }} }}</style>
<nav class="navbar"><a href="index.html">Start</a></nav>
<nav id="quarto-sidebar"><a href="index.html">Home</a> <a href="resets.html#top">Resets</a></nav>
<main><h1>{name}</h1><p>{text}</p><pre style="position: relative; margin-right: 6em">renew()<button style="position: absolute; left: 101%">Copy</button></pre>
<p><a href="dot.svg" download>The dot</a></p><img src="dot.svg" alt="a dot" width="20"></main>
<script>
const index = [["index.html", "home"], ["resets.html", "units that are dormant are renewed"]]
document.querySelector("button").onclick = () => {{
  const form = document.body.appendChild(document.createElement("div"))
  form.innerHTML = '<input class="aa-Input"><div class="hits"></div>'
  form.querySelector("input").oninput = e => form.querySelector(".hits").innerHTML = index.filter(([_, text]) => text.includes(e.target.value)).map(([href]) => `<a class="search-result-link" href="${{href}}?q=x">hit</a>`).join("")
}}
</script>"""
DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><circle cx="10" cy="10" r="8"/></svg>'


def small_site(folder, old="", new=""):
    "Two pages; on the second, `old` is replaced by `new`."
    (folder / "dot.svg").write_text(DOT)
    (folder / "index.html").write_text(PAGE.format(name="Home", text="Which learners stay able to learn? " * 5))
    page = PAGE.format(name="Resets", text="Units that are dormant are renewed. " * 5)
    assert old in page
    (folder / "resets.html").write_text(page.replace(old, new) if old else page)


def test_the_walk_has_no_complaints_about_a_good_site(browser, tmp_path):
    small_site(tmp_path)
    with served(tmp_path) as home:
        walk = Walk(browser, home)
        assert [urlsplit(p).path for p in walk.everything("dormant", "resets")] == ["/index.html", "/resets.html"]
        assert walk.complaints == []


def test_the_walk_finds_the_front_page(browser, tmp_path):
    small_site(tmp_path)
    with served(tmp_path) as home:
        assert Walk(browser, home).front() == "/"
        (tmp_path / "index.html").write_text("""<!doctype html><title>Redirect</title><meta http-equiv="refresh" content="0;URL='resets.html'">""")
        assert Walk(browser, home).front() == "/resets.html"


@pytest.mark.parametrize("old, new, complaint", [
    ('src="dot.svg"', 'src="gone.svg"', "not loaded"), ('alt="a dot"', 'alt=""', "no alternative text"), ("<h1>Resets</h1>", "", "no title"),
    ("<p>", '<p style="width: 900px">', "pixels wide at 400"), ("<p>", '<p style="font-size: 9px">', "letters of 9 pixels"),
    ("<script>", "<script>nonsense();", "nonsense is not defined"), ("<script>", "<script>console.error('oh');", "console: oh"),
    ("left: 101%", "left: 0", "a button covers 'renew()'"), ('href="dot.svg"', 'href="gone.svg"', "does not work"),
    ("#222", "#ddd", "with the dark theme"), ("<p>", '<p style="color: #ddd">', "with the light theme"), ("<p>", '<p style="color: #888">', "with the light theme"),
    ('src="dot.svg"', 'src="http://127.0.0.2:1/dot.svg"', "a request leaves for http://127.0.0.2:1"),
])
def test_the_walk_complains(browser, tmp_path, old, new, complaint):
    small_site(tmp_path, old, new)
    with served(tmp_path) as home:
        walk = Walk(browser, home)
        walk.visit(home + "resets.html")
        assert any(complaint in c for c in walk.complaints)


def test_the_walk_complains_of_a_search_that_finds_nothing(browser, tmp_path):
    small_site(tmp_path)
    with served(tmp_path) as home:
        walk = Walk(browser, home)
        walk.search("plasticity", "resets")
        assert "does not lead to" in walk.complaints[-1]


def test_an_entry_of_the_bar_that_is_in_no_sidebar(browser, tmp_path):
    small_site(tmp_path)
    page = (tmp_path / "index.html").read_text()
    (tmp_path / "other.html").write_text(page)
    for name in ("index", "other"): (tmp_path / f"{name}.html").write_text(page.replace('<nav class="navbar">', '<nav class="navbar"><a href="other.html">Other</a>'))
    with served(tmp_path) as home:
        walk = Walk(browser, home)
        assert len(walk.everything("dormant", "resets")) == 3
        assert any("other.html is not in the sidebar" in c for c in walk.complaints)


def test_what_is_judged_without_a_browser():
    assert round(contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)"), 3) == 21 and contrast("rgb(9, 9, 9)", "rgb(9, 9, 9)") == 1
    assert round(contrast("rgb(119, 119, 119)", "rgba(255, 255, 255, 0.5)"), 2) == 4.48 # the example that WCAG tools give for #777
    letters = [[0, 0, 50, 20, "below"], [0, 30, 50, 50, "beside"], [61, 0, 90, 20, "touched"]]
    assert covered([[40, 5, 62, 25]], letters) == ["below"] and covered([], letters) == []
