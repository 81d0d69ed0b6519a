"""How the house is built: who imports whom, which import paths stay valid, and cells that can be read."""
import ast
import importlib
import json
import re
from graphlib import TopologicalSorter
from statistics import median

import pytest
from processes import ROOT

NBS = ROOT / "nbs"
FROM_INTERNALS = {"core", "random_numbers", "runs", "engines"} # that the story may import; the command line takes all


def module_of(notebook):
    return re.search(r"default_exp ([\w.]+)", notebook.read_text()).group(1)


ROOMS = {module_of(p): int(p.name[:2]) for p in [*NBS.glob("[0-9]*.ipynb"), *NBS.glob("internals/[0-9]*.ipynb")]}


def imported(module):
    "The modules of the package that a module imports when it is imported."
    path = ROOT / "l2init" / (module.replace(".", "/") + ".py")
    here = f"l2init.{module}".split(".")
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        package = ".".join(here[:len(here) - node.level])
        full = f"{package}.{node.module}" if node.module else package
        yield full.removeprefix("l2init.")


def test_every_module_is_a_room():
    files = {str(p.relative_to(ROOT / "l2init").with_suffix("")).replace("/", ".") for p in (ROOT / "l2init").rglob("[a-z]*.py")}
    assert files == set(ROOMS)


@pytest.mark.parametrize("module", sorted(ROOMS))
def test_imports_go_down_the_numbers(module):
    inside = module.startswith("internals.")
    for other in imported(module):
        same_wing = other.startswith("internals.") == inside
        if same_wing: assert ROOMS[other] < ROOMS[module], f"{module} imports {other}"
        elif not inside and module != "cli": assert other.removeprefix("internals.") in FROM_INTERNALS


def test_there_are_no_circles():
    assert list(TopologicalSorter({m: set(imported(m)) for m in ROOMS}).static_order())


OLD = """from l2init.cohorts import Cohort, Method, Probes, grid, methods, train
from l2init.random_numbers import key, permutation
from l2init.regularizers import L2, L2Init, Penalty, penalties
from l2init.studies import environment, papermill_to, plan, record, run_study"""


def shown_imports():
    "Module and name of what somebody may have copied from the README, the site or a plugin, and of earlier versions."
    codes = [OLD, *re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)]
    codes += [p.read_text() for p in (ROOT / "studies").rglob("*.py")]
    for notebook in NBS.rglob("*.ipynb"):
        codes += ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    nodes = [n for code in codes for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    return sorted({(n.module, a.name) for n in nodes if n.module.startswith("l2init") for a in n.names} - {("l2init.internals.random_numbers", "*")})


def test_import_paths_that_were_shown_are_valid():
    shown = shown_imports()
    assert len(shown) > 100
    for module, name in shown:
        if f"{module}.{name}".removeprefix("l2init.") in ROOMS: continue # a module of the package
        assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


def cells():
    "Notebook, source without its first line, and whether it is exported or shown."
    for path in NBS.rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        for cell in json.loads(path.read_text())["cells"]:
            first, *lines = "".join(cell["source"]).splitlines() or [""]
            if cell["cell_type"] != "code" or "default_exp" in first: continue
            exported, hidden = first.startswith("#| export"), first.startswith("#| hide") or "#| echo: false" in [first, *lines]
            yield path.name, [first] * (not first.startswith("#|")) + lines, "exported" if exported else "hidden" if hidden else "shown"


def test_cells_can_be_read():
    lengths = [len(lines) for _, lines, kind in cells() if kind == "exported"]
    assert len(lengths) > 300 and median(lengths) <= 10 and max(lengths) <= 60
    most = dict(exported=120, hidden=120, shown=90)
    assert [(name, line) for name, lines, kind in cells() for line in lines if len(line) > most[kind]] == []
    assert [(name, line) for name, lines, _ in cells() for line in lines if re.match(r"#\|  +_?(export|default_exp|exec_doc|hide|eval|skip_|filter_)", line)] == [] # for nbdev would obey
