"""Every notebook executes from top to bottom, its stored outputs are real, and cleaning and exporting change nothing."""
import json
import os
import shutil
from pathlib import Path

import pytest
from processes import BIN, ROOT, forked, run

NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def cells(notebook): return json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_executes(notebook):
    "As by `nbdev_test`, but in a process that need not import everything again."
    done = forked("processes:execute_notebook", ROOT / notebook, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_nbdev_test_executes_them_too():
    done = run([BIN / "nbdev_test", "--path", "nbs/internals/00_core.ipynb", "--n_workers", "0"], cwd=ROOT)
    assert done.returncode == 0 and "Success" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_outputs_are_stored(notebook):
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    outputs = [o for c in code for o in c["outputs"]]
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs), "a stored output is an error or a warning"
    for c in code:
        source = "".join(c["source"])
        if "plt.show()" in source and "def " not in source: assert any("image/png" in o.get("data", {}) for o in c["outputs"]), f"no figure is stored under: {source[:80]}"
    assert (ROOT / notebook).stat().st_size < (1_000_000 if notebook.parent.name == "reports" else 300_000)
    assert len({c["id"] for c in cells(notebook)}) == len(cells(notebook))


def test_cleaning_and_exporting_change_nothing(tmp_path):
    parts = "nbs", "l2init", "settings.ini", "setup.py", "README.md"
    for part in parts:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    files = lambda folder: {p.relative_to(folder): p.read_bytes() for part in ("nbs", "l2init") for p in (folder / part).rglob("*") if p.suffix in (".ipynb", ".py")}
    before = files(tmp_path)
    for command in ("nbdev_clean", "nbdev_export"): assert (done := run([BIN / command], cwd=tmp_path)).returncode == 0, done.stderr
    after = files(tmp_path)
    assert [str(p) for p in after if after[p] != before.get(p)] == []
