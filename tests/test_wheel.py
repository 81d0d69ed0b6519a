"""A study anywhere: a built wheel in a fresh environment, an empty folder, and nothing else of this repository."""
import json
import os
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from processes import ROOT, environment, run

SOURCES = "setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE", "l2init", "nbs/experiments", "nbs/reports"
SMALL = (("tasks = 6 ", "tasks = 2 "), ("examples = 100 ", "examples = 32 "), ("passes = 100 ", "passes = 2 "), ("[100, 100]", "[8]"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The folder with the commands of an environment in which the wheel is installed; what it needs is lent by the environment of the tests."
    here = tmp_path_factory.mktemp("wheel")
    for source in SOURCES:
        (here / "source" / source).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, here / "source" / source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", here / "dist", here / "source"], cwd=here)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(here / "source")
    venv.create(here / "venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars=dict(base=str(here / "venv"), platbase=str(here / "venv"))))
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    wheel, = (here / "dist").glob("*.whl")
    done = run([*pip, "--python", here / "venv" / "bin" / "python", "install", "--no-deps", "--no-index", wheel], cwd=here)
    assert done.returncode == 0, done.stderr
    return here / "venv" / "bin"


@pytest.mark.slow
def test_a_study_file_in_an_empty_folder_suffices(installed, tmp_path):
    env = {n: v for n, v in environment().items() if n != "PYTHONPATH"}
    where = run([installed / "python", "-c", "import l2init; print(l2init.__file__)"], cwd=tmp_path, env=env)
    assert Path(where.stdout.strip()).is_relative_to(installed.parent), where.stdout + where.stderr

    def l2init(*args):
        ended = run([installed / "l2init", *args], cwd=tmp_path, env=env)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    assert l2init("new", "my_study").split() == ["my_study.toml"] == os.listdir(tmp_path)
    text = (tmp_path / "my_study.toml").read_text()
    for old, new in SMALL:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "my_study.toml").write_text(text)
    assert "total: 2 runs, 9 learners" in l2init("run", "my_study.toml", "--dry-run")
    ran = l2init("run", "my_study.toml", "--workers", "1")
    figures = [line for line in ran.splitlines() if line.endswith(".png")]
    assert len(figures) == 3 and all((tmp_path / f).stat().st_size > 10_000 for f in figures)
    assert l2init("status", "my_study.toml").count("done") == 2
    assert l2init("table", "my_study.toml", "--csv").count("l2_init") == 2
    kept = [tmp_path / f for f in l2init("keep", "my_study.toml").split()]
    assert [f.suffix for f in kept] == [".parquet", ".json"]
    provenance = json.loads(kept[1].read_text())
    assert provenance["commits"] == ["none, for the package was installed"] and provenance["learners"] == 9 and len(provenance["code"][0]) == 12
    for env_file in (tmp_path / "runs").rglob("env.json"): assert json.loads(env_file.read_text())["commit"] is None
