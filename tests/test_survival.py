"""Studies survive what happens to programs that run over night: kills, full disks, damaged files, edits, a clock that is set back, and each other."""
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from conftest import STUDY
from processes import BIN, HANGS, environment, l2init, made, run, started

from l2init.internals.batches import KEEP_MEMORY
from l2init.internals.runs import Run, keep_plan

pytestmark = [pytest.mark.xdist_group("finished"), pytest.mark.long]
NEEDS_ROOT = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"), reason="a small disk is mounted, which needs root")


@pytest.fixture
def project(finished, tmp_path): return Path(shutil.copytree(finished[0], tmp_path / "project"))


def files(project): return {p.relative_to(project): p.read_bytes() for p in sorted((project / "runs").rglob("metrics.parquet"))}


def of_kind(parent, kind):
    "The worker or kernel processes of a study."
    word = dict(worker="execute_from_stdin", kernel="ipykernel")[kind]
    return [p for p in parent.children(recursive=True) if p.is_running() and word in " ".join(p.cmdline())]


def kill_one(parent, kind):
    "SIGKILL to a process of that kind, if there is one. Returns whether there was."
    try: victim = parent if kind == "parent" else random.choice(of_kind(parent, kind))
    except (IndexError, psutil.Error): return False
    victim.kill()
    return True


def left_after(processes):
    "Those that do not end by themselves; they are ended."
    left = psutil.wait_procs(processes, timeout=HANGS)[1]
    for p in left: p.kill()
    return left


def undisturbed_and_killed(folder, kinds, tasks, network='name = "mlp"\nhidden = [8]'):
    """What a study leaves that nobody disturbs, and one of which processes of `kinds` are killed, one after the other, each in the middle of a run
    that has come a task further since the last kill, while the same command is typed again and again."""
    study = STUDY.replace("tasks = 2", f"tasks = {tasks}").replace("[1e-2, 1e-3]", "[1e-2]") + '[[methods]]\nname = "redo"\nperiod = [3]\nthreshold = [0.1]\n'
    study = study.replace('name = "mlp"\nhidden = [8]', network)
    calm, wild = (made(folder / name, study) for name in ("calm", "wild"))
    assert l2init(calm, "run", "study.toml", "--workers", 2).returncode == 0
    kinds, status = list(kinds), None
    while status != 0:
        with started([BIN / "l2init", "run", "study.toml", "--workers", "2", "--retry-failed", "--checkpoint-every", "0"], cwd=wild, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
            parent, seen, deadline = psutil.Process(command.pid), None, time.monotonic() + HANGS
            while (status := command.poll()) is None:
                assert time.monotonic() < deadline, f"nothing happens before these kills: {kinds}"
                time.sleep(.05)
                now = sorted((p, p.read_bytes()) for p in wild.glob("runs/study/*/progress"))
                if not kinds or now == seen: continue
                seen, deadline = now, time.monotonic() + HANGS
                time.sleep(random.uniform(0, .3))
                with_it = parent.children(recursive=True)
                if kill_one(parent, kinds[0]) and kinds.pop(0) == "parent": assert not left_after(with_it), "a worker or a kernel outlived the command"
    assert not kinds
    return files(calm), files(wild)


def test_a_kernel_a_worker_and_the_command_are_killed_and_nothing_changes(tmp_path):
    calm, wild = undisturbed_and_killed(tmp_path, ["kernel", "worker", "parent"], 40)
    assert calm == wild and len(calm) == 3


@pytest.mark.slow
def test_a_resnet_in_lock_step_is_killed_and_nothing_changes(tmp_path):
    calm, wild = undisturbed_and_killed(tmp_path, ["kernel", "worker", "parent"], 10, 'name = "resnet18"\nwidth = 2\nnorm = "batch"')
    assert calm == wild and len(calm) == 3
    of_calm, of_wild = (l2init(tmp_path / name, "table", "study.toml") for name in ("calm", "wild"))
    print(of_wild.stdout)
    assert of_calm.returncode == 0 and of_calm.stdout == of_wild.stdout
    assert all(method in of_wild.stdout for method in ("plain", "l2_init", "redo"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    random.seed(0)
    calm, wild = undisturbed_and_killed(tmp_path, random.choices(["kernel", "kernel", "worker", "worker", "parent"], k=20), 250)
    assert calm == wild and len(calm) == 3


def test_two_commands_at_the_same_second_share_the_work(tmp_path):
    project = made(tmp_path, STUDY)
    with ExitStack() as ends:
        both = [ends.enter_context(started([BIN / "l2init", "run", "study.toml", "--workers", "1"], cwd=project)) for _ in range(2)]
        (table, said), (other_table, other_said) = (p.communicate(timeout=HANGS) for p in both)
    assert [p.returncode for p in both] == [0, 0], said + other_said
    assert table == other_table and (said + other_said).count(": done after") == 2, "each run is executed once"


@pytest.mark.slow
def test_a_run_past_its_time_limit_fails_alone(tmp_path):
    project = made(tmp_path, STUDY.replace('[[methods]]\nname = "plain"\n', ""))
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    notebook.write_text(notebook.read_text().replace("metrics = train(cohort,", "import time; time.sleep(1000 * (method == 'plain')); metrics = train(cohort,"))
    assert l2init(project, "run", "study.toml").returncode == 0 # without a limit, so that no slow machine comes to it
    (project / "study.toml").write_text(STUDY)
    ended = l2init(project, "run", "study.toml", "--timeout", 20)
    assert ended.returncode == 1 and "took longer than its 20 seconds" in ended.stderr and "1 failed" in ended.stderr
    status = l2init(project, "status", "study.toml").stdout
    assert "done" in status and "failed" in status and "TimeoutError" in status
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(project) in " ".join(p.info["cmdline"] or ())]
    again = l2init(project, "run", "study.toml")
    assert again.returncode == 1 and "--retry-failed" in again.stderr and ": done after" not in again.stderr, "what failed is tried again on request only"


@pytest.mark.slow
def test_stop_on_failure(tmp_path):
    project = made(tmp_path, STUDY)
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    notebook.write_text(notebook.read_text().replace("metrics = train(cohort,", "raise RuntimeError('out of luck'); metrics = train(cohort,"))
    ended = l2init(project, "run", "study.toml", "--workers", 1, "--stop-on-failure")
    assert ended.returncode == 1 and ended.stderr.count("out of luck") == 1
    assert l2init(project, "status", "study.toml").stdout.count("waiting") == 1


def test_truncated_metrics_are_noticed(project):
    file = next((project / "runs").rglob("metrics.parquet"))
    file.write_bytes(file.read_bytes()[:500])
    table = l2init(project, "table", "study.toml")
    assert table.returncode == 2 and table.stderr.count("\n") == 1 and f"{file.parent.name}/metrics.parquet is damaged" in table.stderr
    before = files(project)
    shutil.rmtree(file.parent) # as the message says
    assert l2init(project, "run", "study.toml").returncode == 0
    assert {p for p, content in files(project).items() if before[p] == content} == set(before) - {file.relative_to(project)}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_says_what_to_do(project):
    folder = next((project / "runs" / "study").glob("*/done")).parent
    (folder / "done").unlink() # as if it had been killed
    (folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    ended = l2init(project, "run", "study.toml")
    assert ended.returncode == 1 and "checkpoint.pt is damaged" in ended.stderr and "Delete it to start this run anew" in ended.stderr
    expected = (folder / "metrics.parquet").read_bytes()
    (folder / "checkpoint.pt").unlink()
    assert l2init(project, "run", "study.toml", "--retry-failed").returncode == 0
    assert (folder / "metrics.parquet").read_bytes() == expected


def test_an_edited_study_keeps_what_is_done(project):
    before = files(project)
    (project / "study.toml").write_text(STUDY + '[[methods]]\nname = "l2"\nstrength = [1e-2]\n')
    ended = l2init(project, "run", "study.toml")
    assert ended.returncode == 0 and "3 runs, 2 of them done already" in ended.stderr
    assert len(files(project)) == 3 and before.items() <= files(project).items()


def test_a_clock_that_was_set_back(project):
    "Files from the future: nothing is done again."
    for p in (project / "runs").rglob("*"): os.utime(p, (4e9, 4e9))
    ended = l2init(project, "run", "study.toml")
    assert ended.returncode == 0 and "2 of them done already" in ended.stderr and ": done after" not in ended.stderr


def test_a_damaged_data_file(project):
    raw = project / "mydata" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"): (raw / f"{part}-{kind}-ubyte").write_bytes(b"\x00\x00\x08\x03half")
    (project / "study.toml").write_text(STUDY.replace('"mnist5k"', '"mnist"\nroot = "mydata"'))
    ended = l2init(project, "run", "study.toml")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and "mydata" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
    assert len(files(project)) == 2


@NEEDS_ROOT
def test_a_disk_that_is_full(project):
    "On a disk that is too small the command stops and says why; on a larger one it goes on."
    small = project / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True).returncode: pytest.skip("tmpfs cannot be mounted here")
    try:
        ended = l2init(project, "run", "study.toml", "--runs", small)
        assert ended.returncode in (1, 2) and "No space left on device" in ended.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        assert l2init(project, "run", "study.toml", "--runs", small, "--retry-failed").returncode == 0
        assert sorted(p.read_bytes() for p in small.rglob("metrics.parquet")) == sorted(files(project).values())
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        (project / "study.toml").write_text(STUDY + '[[methods]]\nname = "l2"\nstrength = [1e-2]\n')
        ended = l2init(project, "run", "study.toml", "--runs", small)
        assert ended.returncode == 2 and "cannot be written: Read-only file system" in ended.stderr
        assert l2init(project, "table", "study.toml", "--runs", small).returncode == 0
    finally: subprocess.run(["umount", small], check=True)


def test_status_of_five_thousand_runs(tmp_path):
    "The plan is kept, so nothing is planned, for which torch would be needed, and no time is lost with 5,000 notebooks' parameters."
    project, home = made(tmp_path, STUDY), tmp_path / "runs" / "study"
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    runs = [Run("study", notebook, dict(method="l2", hyper=dict(strength=[s * 1e-5]), optimizer="adam"), home, 100, 2) for s in range(5000)]
    for i, r in enumerate(runs):
        r.folder.mkdir(parents=True)
        (r.folder / "lock").touch()
        if i % 10 == 0: (r.folder / "error.txt").write_text("Traceback\nRuntimeError: out of luck")
        elif i % 10 < 8: (r.folder / "done").write_text("12.5")
    keep_plan(project / "study.toml", runs)
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('torch is imported')")
    path = os.pathsep.join([str(tmp_path / "without"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    ended = run([BIN / "l2init", "status", "study.toml"], cwd=project, env=environment(PYTHONPATH=path))
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout
    assert [said.count(f" {state} ") for state in ("done", "failed", "waiting")] == [3500, 500, 1000] and said.count("out of luck") == 500
    unkept = run([BIN / "l2init", "status", "study.toml", "--runs", "elsewhere"], cwd=project, env=environment(PYTHONPATH=path))
    assert "torch is imported" in unkept.stderr # where there is something to plan


@pytest.mark.slow
def test_fifty_tiny_runs(tmp_path):
    "None is lost, none is done twice."
    methods = "".join(f'[[methods]]\nname = "l2_init"\nstrength = [{s}e-4]\n' for s in range(1, 51))
    project = made(tmp_path, STUDY[:STUDY.index("[[methods]]")] + methods + STUDY[STUDY.index("[[optimizers]]"):])
    ended = l2init(project, "run", "study.toml", "--workers", 2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(": done after") == 50 == len(files(project)) and "[50/50 done" in ended.stderr
    assert all((p.parent / "log.txt").exists() and not (p.parent / "error.txt").exists() for p in project.glob("runs/study/*/done"))


LEARNS = """
import resource

import torch

from l2init.cohorts import Cohort
from l2init.internals.engines import engine
from l2init.methods import grid
from l2init.streams import stream

cohort = Cohort(grid("plain", [*range(10)], [1e-4]), (1, 28, 28), 10, "plain", hidden=[2])
learning, kept = engine(cohort), []
for task, passes in enumerate((4, 4, 100)):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=3, passes=passes)
    learning.learn(s.task(task, cohort.seeds))
    kept += [torch.ones(1000) for _ in range(2000)] # as probes and checkpoints leave some
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="units of memory and its allocation are Linux's")
def test_a_long_task_needs_no_more_memory_than_a_short_one():
    "A task of 25 times as many steps, each block of images 32 MB, with the settings of the workers of a study."
    shown = run([sys.executable, "-c", LEARNS], env=environment(**KEEP_MEMORY, OMP_NUM_THREADS="1")).stdout
    _, short, long = map(int, shown.split())
    # ten of its hundred blocks: how many are alive at once, and where the allocator puts them, is not the same each time
    assert long - short < 10 * 32e6, f"{(long - short) / 1e6:.0f} MB more"
