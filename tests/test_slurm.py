"""A study on a real Slurm of one node, which `slurm.sh` starts on loopback."""
import json
import os
import shutil
import subprocess
import time

import pytest
from conftest import STUDY
from processes import HANGS, ROOT, l2init, made
from test_survival import files

pytestmark = [pytest.mark.xdist_group("slurm"), pytest.mark.slow]
LONG = STUDY.replace("tasks = 2", "tasks = 40")


def waiting(folder, study=LONG):
    "A project whose runs wait after their 20th task until there is a file `go`, so that they can be disturbed in the middle."
    project = made(folder, study)
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    wait = ["import os, time", "from l2init.internals.engines import Engine", "learn = Engine.learn", "def patient(engine, task):", "    while task.index == 20 and not os.path.exists('../../../go'): time.sleep(.1)", "    return learn(engine, task)", "Engine.learn = patient"]
    content = json.loads(notebook.read_text())
    cell = next(c for c in content["cells"] if "train(cohort, s," in "".join(c["source"]))
    cell["source"] = [line + "\n" for line in wait] + cell["source"]
    notebook.write_text(json.dumps(content))
    return project


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "The environment in which Slurm's commands find it."
    if os.geteuid() != 0 or not shutil.which("apt-get"): pytest.skip("Slurm is installed and started as root on Debian only")
    folder, script = tmp_path_factory.mktemp("slurm"), ROOT / "tests" / "slurm.sh"
    started = subprocess.run([script, "start", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if started.returncode:
        subprocess.run([script, "stop", folder], capture_output=True)
        pytest.skip(f"Slurm does not start here: {started.stderr[-300:]}")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try: yield
    finally:
        del os.environ["SLURM_CONF"]
        subprocess.run([script, "stop", folder], check=True)


def in_queue(): return subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=True).stdout.split()


def wait_until(condition):
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(.3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The long study, done by local workers."
    project = waiting(tmp_path_factory.mktemp("undisturbed"))
    (project / "go").touch()
    ended = l2init(project, "run", "study.toml", "--workers", 2)
    assert ended.returncode == 0, ended.stderr
    return project, ended.stdout


ONE = LONG.replace('[[methods]]\nname = "l2_init"\nstrength = [1e-2, 1e-3]\n', "") # run


def begin_anew(job):
    "Wait until Slurm has queued a job again, and let it begin now, instead of after two minutes, with all the time that it needs."
    shown = lambda: subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    wait_until(lambda: "Restarts=1" in shown() and "PENDING" in shown())
    time.sleep(5) # for some seconds its node knows it as one that is not to be launched
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=60"], check=True)


def test_a_cancelled_element_and_one_past_its_time_limit_finish_and_the_table_is_the_same(slurm, undisturbed, tmp_path):
    """One element is cancelled in the middle; the other comes to its time limit, of which Slurm warns, and is queued anew by itself.
    The same command submits the cancelled one again, and then prints the table that local workers give."""
    project = waiting(tmp_path)
    run = lambda *options: l2init(project, "run", "study.toml", "--slurm", "--parallel", 2, "--checkpoint-every", 0, *options)
    progress = lambda: {p.parent.name: p.read_text() for p in project.glob("runs/study/*/progress")}
    first = run("--minutes", 2)
    assert first.returncode == 0 and "Submitted 2 runs as job" in first.stderr, first.stderr
    again = run()
    assert again.returncode == 0 and "In the queue or running already: 2 runs" in again.stderr and "Submitted" not in again.stderr
    wait_until(lambda: list(progress().values()) == ["20/40"] * 2)
    cancelled, slow = [f.read_text() for f in project.glob("runs/study/*/job")]
    subprocess.run(["scancel", cancelled], check=True)
    wait_until(lambda: cancelled not in in_queue())
    begin_anew(slow)
    (project / "go").touch()
    second = run()
    assert second.returncode == 0 and "Submitted 1 run " in second.stderr, second.stderr
    wait_until(lambda: len(list(project.glob("runs/study/*/done"))) == 2)
    wait_until(lambda: not in_queue())
    last = run()
    assert last.returncode == 0, last.stderr
    calm, table = undisturbed
    assert last.stdout == table and files(project) == files(calm)


def test_a_preempted_element_goes_on_by_itself(slurm, undisturbed, tmp_path):
    "A job of a partition with priority needs the node; Slurm queues the element anew."
    project = waiting(tmp_path, ONE)
    assert l2init(project, "run", "study.toml", "--slurm", "--checkpoint-every", 0).returncode == 0
    file, = project.glob("runs/study/*/job")
    wait_until(lambda: (file.parent / "progress").exists() and (file.parent / "progress").read_text() == "20/40")
    subprocess.run(["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"], check=True, capture_output=True)
    begin_anew(file.read_text())
    (project / "go").touch()
    wait_until((file.parent / "done").exists)
    assert files(project).items() <= files(undisturbed[0]).items()
    wait_until(lambda: not in_queue())


def test_a_job_that_is_killed_is_resumed_by_the_same_command(slurm, undisturbed, tmp_path):
    "Without a warning that it could heed, as when its node is lost; the same command does the rest."
    project = waiting(tmp_path, ONE)
    assert l2init(project, "run", "study.toml", "--slurm", "--checkpoint-every", 0).returncode == 0
    file, = project.glob("runs/study/*/job")
    wait_until(lambda: (file.parent / "progress").exists() and (file.parent / "progress").read_text() == "20/40")
    subprocess.run(["scancel", "--signal=KILL", "--full", file.read_text()], check=True)
    wait_until(lambda: not in_queue())
    (project / "go").touch()
    assert l2init(project, "run", "study.toml", "--slurm").returncode == 0
    wait_until((file.parent / "done").exists)
    assert files(project).items() <= files(undisturbed[0]).items()
    wait_until(lambda: not in_queue())
