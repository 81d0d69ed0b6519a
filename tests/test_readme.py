"""The README's commands and code blocks do what it says."""
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from processes import BIN, ROOT, environment, l2init, run, started

README = (ROOT / "README.md").read_text(encoding="utf-8")
ON_PATH = dict(PATH=f"{BIN}:{os.environ['PATH']}") # as by `source .venv/bin/activate`


def blocks(language): return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(): return [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]


def sh(command, cwd=ROOT): return run(["bash", "-c", command], cwd=cwd, env=environment(**ON_PATH))


def test_every_command_is_known_here():
    "What the tests below run is what the README says; `make test` is what is running."
    first_words = {" ".join(c.split()[:2]) for c in commands()}
    assert first_words == {"make demo", "make test", "papermill nbs/experiments/random_label_mnist.ipynb", "l2init run", "l2init status", "l2init table", "l2init methods", "l2init streams"}


def test_python_blocks_run_in_order(tmp_path):
    code = "\n".join(blocks("python"))
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "strength  task" in done.stdout


def test_speed_is_what_make_bench_measured():
    works = json.loads((ROOT / "benchmarks/results.json").read_text())["works"]
    dense = round(works["MLP, Adam, L2 Init, dense inputs"]["ratio"])
    ratios = {kind: [round(w["ratio"], 1 if kind == "CNN" else None) for name, w in works.items() if name.startswith(kind) and "dense" not in name] for kind in ("MLP", "CNN")}
    said = "{} to {} times as many learner-steps a second as a plain PyTorch loop for perceptrons on digits ({dense} on dense images), {} to {} times for convolutional networks"
    assert said.format(*(f(ratios[kind]) for kind in ("MLP", "CNN") for f in (min, max)), dense=dense) in README


def test_papermill(tmp_path):
    command, = [c for c in commands() if c.startswith("papermill")]
    done = sh(command.replace("my_run.ipynb", str(tmp_path / "my_run.ipynb")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 learners of 89,610 parameters, 3 tasks" in (tmp_path / "my_run.ipynb").read_text()


def demo(project):
    "`make demo` and the commands on its study, of which none does a run again. The table's rows."
    done = sh(f"make -o install demo VENV={BIN.parent}", project)
    assert done.returncode == 0, done.stderr
    stamps = lambda: {p: p.stat().st_mtime_ns for p in project.glob("runs/demo/*/metrics.parquet")}
    made, said = stamps(), {}
    for command in (c for c in commands() if c.startswith("l2init")):
        said[command] = l2init(project, *shlex.split(command)[1:])
        assert said[command].returncode == 0, said[command].stderr
    assert made and stamps() == made, "a run was done again"
    assert {p.name for p in (project / "runs" / "demo" / "report").glob("*.png")} >= {"learning_curves.png", "comparison.png"}
    table, = [c for c in commands() if c.startswith("l2init table")]
    return [*csv.DictReader(io.StringIO(said[table].stdout))]


@pytest.fixture
def project(tmp_path):
    "What the commands need, without what was run here before."
    for part in ("nbs", "studies"): shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


@pytest.mark.long
def test_the_commands_on_the_demo_cut_down(project):
    study = project / "studies" / "demo.toml"
    text = study.read_text(encoding="utf-8")
    for old, new in (('[[methods]]\nname = "l2"\nstrength = [1e-2, 1e-3]\n', ""), ('[[methods]]\nname = "layer_norm"\n', ""), ("tasks = 8", "tasks = 2"), ("passes = 200", "passes = 2"), ("tasks = 30", "tasks = 2"), ("examples = 4000", "examples = 160"), ("hidden = [100, 100]", "hidden = [8]")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    study.write_text(text, encoding="utf-8")
    rows = demo(project)
    assert len(rows) == 6 and all(int(r["seeds"]) == 5 for r in rows)


@pytest.mark.slow
def test_demo_study_shows_the_claim(project):
    "Best L2 Init above best L2 and plain training, intervals apart."
    rows = demo(project)
    assert all(int(r["seeds"]) >= 5 and r["diverged"] == "0" for r in rows)
    labels = [r for r in rows if r["stream"] == "random_label_mnist"]
    best = {m: max((r for r in labels if r["method"] == m), key=lambda r: float(r["online_accuracy"])) for m in ("plain", "l2", "l2_init")}
    assert float(best["l2_init"]["ci_low"]) > max(float(best[m]["ci_high"]) for m in ("plain", "l2"))


def test_lab_opens_on_loopback(tmp_path):
    (tmp_path / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true, "open_browser": false}}')
    with started(["make", "-o", "install", "lab", f"VENV={BIN.parent}"], cwd=ROOT, env=environment(JUPYTER_CONFIG_DIR=str(tmp_path)), stderr=subprocess.STDOUT) as lab:
        lines = []
        while (line := lab.stdout.readline()):
            lines.append(line)
            if "http://127.0.0.1" in line or "http://localhost" in line: return
        pytest.fail("".join(lines[-20:]))


@pytest.mark.slow
def test_bench_prints_the_ratio():
    done = sh(f"{BIN}/python benchmarks/throughput.py --only 'MLP, SGD' --repetitions 1")
    assert done.returncode == 0 and re.search(r"MLP, SGD, L2 Init +\d+ +\d+ +\d+ +\d+\.\d\d", done.stdout), done.stdout + done.stderr[-2000:]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
