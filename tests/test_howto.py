"""The worked example of a method outside the package, tried: a study finds it, sweeps it and lists it."""
import shutil
import sys

import pytest
from processes import ROOT, l2init, run

HOWTO = ROOT / "studies" / "howto"
PLANS = """
from pathlib import Path
from l2init.internals.core import InputError
from l2init.studies import plan
run, = plan("study.toml")
plugin = Path("log_init.py")
plugin.write_text(plugin.read_text().replace("Log Init", "Logarithmic Init")) # another text is another method
changed, = plan("study.toml")
assert (run.state, changed.state) == ("done", "waiting"), (run.state, changed.state)
Path("study.toml").write_text(Path("study.toml").read_text().replace("log_init.py", "log_int.py"))
try: plan("study.toml")
except InputError as e: assert "Unknown plugin" in str(e) and "Did you mean" in str(e), e
else: raise AssertionError("a plugin that is not there")
"""


@pytest.fixture
def project(tmp_path):
    "A project of its own with an experiment notebook of ours and the example, cut down to one cohort."
    (tmp_path / "nbs" / "experiments").mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / "experiments" / "random_label_mnist.ipynb", tmp_path / "nbs" / "experiments")
    shutil.copy(HOWTO / "log_init.py", tmp_path)
    text = (HOWTO / "log_init.toml").read_text()
    for old, new in (("tasks = 4", "tasks = 2"), ("examples = 80", "examples = 32"), ("passes = 100", "passes = 2"), ('[[methods]]\nname = "l2_init"\nstrength = [1e-1, 1e-2, 1e-3]\n', ""), ('[[methods]]\nname = "plain"\n', "")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text)
    return tmp_path


def test_the_method_is_short(): assert len((HOWTO / "log_init.py").read_text().splitlines()) <= 20


def test_a_study_sweeps_it(project):
    done = l2init(project, "run", "study.toml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("log_init") == 3 # a row for each strength
    plans = run([sys.executable, "-c", PLANS], cwd=project)
    assert plans.returncode == 0, plans.stderr


NETWORKS = """
from l2init.studies import plan
runs = plan("study.toml")
assert {r.params["network"]["name"] for r in runs} == {"mixer", "resnet18"} and len(runs) == 6, runs
assert {r.params["method"] for r in runs} == {"plain", "l2_init", "shrink_perturb"}
"""


def test_a_study_knows_networks_of_modules(project):
    for end in ("py", "toml"): shutil.copy(HOWTO / f"own_network.{end}", project)
    (project / "own_network.toml").rename(project / "study.toml")
    plans = run([sys.executable, "-c", NETWORKS], cwd=project)
    assert plans.returncode == 0, plans.stderr
