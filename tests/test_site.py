"""The site as far as it can be checked without Quarto: the filter on every page, and the pages that `_quarto.yml` names."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_notebooks import NOTEBOOKS

FILTER = Path(sys.executable).with_name("l2init_quarto_filter")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_every_page_goes_through_the_filter(notebook):
    text = (ROOT / notebook).read_text(encoding="utf-8")
    done = subprocess.run([FILTER], input=text, cwd=(ROOT / notebook).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = "\n".join("".join(c["source"]) for c in json.loads(done.stdout)["cells"] if c["cell_type"] == "code")
    assert "#| export" not in shown and "#| hide" not in shown and "default_exp" not in shown


def test_every_notebook_has_its_place_in_the_sidebar():
    def pages(entries):
        for e in entries: yield from pages(e["contents"]) if isinstance(e, dict) else [e]
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert sorted(pages(site["website"]["sidebar"]["contents"])) == sorted(map(str, NOTEBOOKS))
    assert all((ROOT / e["href"]).is_file() for e in site["website"]["navbar"]["left"])
    assert site["ipynb-filters"] == [FILTER.name] and FILTER.is_file()


def test_make_docs_without_quarto_says_how_to_get_it(tmp_path):
    "On a PATH that has make and bash but no Quarto."
    for tool in ("make", "bash", "echo", "touch"): (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    done = subprocess.run(["make", "-o", "install", "docs"], cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0 and "make docs needs Quarto: get it from https://quarto.org" in done.stderr
