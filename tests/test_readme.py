"""The README's commands and code blocks do what it says."""
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENV = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def blocks(language): return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(): return [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]


def sh(command, cwd=ROOT, **kwargs): return subprocess.run(command, shell=True, cwd=cwd, env=ENV, capture_output=True, text=True, **kwargs)


def test_every_command_is_known_here():
    "What the tests below run is what the README says; `make test` is what is running."
    first_words = {" ".join(c.split()[:2]) for c in commands()}
    assert first_words == {"make demo", "make test", "papermill nbs/experiments/random_label_mnist.ipynb", "l2init run", "l2init status", "l2init table", "l2init methods", "l2init streams"}


def test_python_blocks_run_in_order(tmp_path):
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "strength  task" in done.stdout


def test_speed_is_what_make_bench_measured():
    works = json.loads((ROOT / "benchmarks/results.json").read_text())["works"]
    ratios = {kind: [round(w["ratio"]) for name, w in works.items() if name.startswith(kind)] for kind in ("MLP", "CNN")}
    said = "{} to {} times as many learner-steps a second as a plain PyTorch loop for perceptrons, {} to {} times for convolutional networks"
    assert said.format(*(f(ratios[kind]) for kind in ("MLP", "CNN") for f in (min, max))) in README


def test_papermill(tmp_path):
    command, = [c for c in commands() if c.startswith("papermill")]
    done = sh(command.replace("my_run.ipynb", str(tmp_path / "my_run.ipynb")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 learners of 89,610 parameters, 3 tasks" in (tmp_path / "my_run.ipynb").read_text()


@pytest.mark.xdist_group("demo")
def test_demo_study_shows_the_claim():
    "The commands on the demo study, then the claim: best L2 Init above best L2 and plain training, intervals apart."
    assert sh("make demo").returncode == 0
    for command in (c for c in commands() if c.startswith("l2init")):
        start, done = time.perf_counter(), sh(command)
        assert done.returncode == 0, done.stderr
        assert time.perf_counter() - start < 120, f"{command} ran something again"
    table, = [c for c in commands() if c.startswith("l2init table")]
    rows = [r for r in csv.DictReader(io.StringIO(sh(table).stdout))]
    assert all(int(r["seeds"]) >= 5 and r["diverged"] == "0" for r in rows)
    labels = [r for r in rows if r["stream"] == "random_label_mnist"]
    best = {m: max((r for r in labels if r["method"] == m), key=lambda r: float(r["online_accuracy"])) for m in ("plain", "l2", "l2_init")}
    assert float(best["l2_init"]["ci_low"]) > max(float(best[m]["ci_high"]) for m in ("plain", "l2"))
    assert {p.name for p in (ROOT / "runs" / "demo" / "report").glob("*.png")} >= {"learning_curves.png", "comparison.png"}


def test_lab_opens_on_loopback(tmp_path):
    (tmp_path / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true, "open_browser": false}}')
    lab = subprocess.Popen(["make", "lab"], cwd=ROOT, env={**ENV, "JUPYTER_CONFIG_DIR": str(tmp_path)},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        lines = []
        while (line := lab.stdout.readline()):
            lines.append(line)
            if "http://127.0.0.1" in line or "http://localhost" in line: return
        pytest.fail("".join(lines[-20:]))
    finally: os.killpg(lab.pid, signal.SIGTERM); lab.wait(30)


def test_bench_prints_the_ratio():
    done = sh(f"{BIN}/python benchmarks/throughput.py --only 'MLP, SGD' --repetitions 1")
    assert done.returncode == 0 and re.search(r"MLP, SGD, L2 Init +\d+ +\d+ +\d+ +\d+\.\d\d", done.stdout), done.stdout + done.stderr[-2000:]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
