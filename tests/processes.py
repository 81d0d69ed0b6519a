"""Processes that tests start: in an environment of their own, with the signals of a shell, and gone when the test is, however it ends."""
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
HANGS = 1800 # seconds after which a process hangs, on a machine however busy; never a measurement
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["l2init.cli", "l2init.plots", "l2init.results", "l2init.internals.site", "l2init.studies", "l2init.internals.kernels", "nbdev.test", "nbdev.processors", "papermill", "torchvision.models"])


def isolate()->None:
    "Make the environment, which all that is started inherits, independent of the user's."
    for name in list(os.environ):
        if name.startswith(("L2INIT_", "JUPYTER_", "IPYTHON", "PAPERMILL_")): del os.environ[name]
    if len(tempfile.gettempdir()) > 60: # the path of a kernel's socket has at most 107 characters
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    own = os.environ.setdefault("TESTS_FOLDER", tempfile.mkdtemp(prefix="tests"))
    os.environ.update({f"JUPYTER_{n}_DIR": f"{own}/{n.lower()}" for n in ("CONFIG", "DATA", "RUNTIME")}, IPYTHONDIR=f"{own}/ipython")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg")


def environment(**more)->dict: return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more} # results are compared bit by bit, so all learn on the CPU


def end(process:psutil.Process)->None:
    "Kill a process and all that it has started, also in sessions of their own."
    try: family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess: return
    for member in family:
        try: member.kill()
        except psutil.NoSuchProcess: pass
    psutil.wait_procs(family, timeout=HANGS)


@contextmanager
def started(command, ignores_sigint=False, **options):
    "A running command. SIGINT ends it, even where these tests were started in a shell's background; or it ignores it as if it were there."
    def signals():
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_sigint else signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    options = dict(env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    process = subprocess.Popen(list(map(str, command)), preexec_fn=signals, start_new_session=True, **options)
    watched = psutil.Process(process.pid)
    try: yield process
    finally:
        end(watched)
        for pipe in (process.stdout, process.stderr):
            if pipe: pipe.close()
        process.wait(HANGS)


def run(command, **options)->subprocess.CompletedProcess:
    "A command, from its start to its end."
    with started(command, **options) as process: out, err = process.communicate(timeout=HANGS)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _in_fork(folder, entry, args, cwd, env, stdin):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, n in (("out", 1), ("err", 2)): os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), n)
    sys.stdin = open(stdin or os.devnull, encoding="utf-8")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    module, _, function = entry.partition(":")
    sys.argv = [function, *args]
    getattr(import_module(module), function)()


def forked(entry, *args, cwd=ROOT, env=None, stdin=None)->subprocess.CompletedProcess:
    "The same of a console script, e.g. l2init.cli:main, in a process that is forked from one that has imported everything: seconds faster."
    with tempfile.TemporaryDirectory() as folder:
        process = FORK.Process(target=_in_fork, args=(folder, entry, list(map(str, args)), str(cwd), env or environment(), stdin and str(stdin)))
        process.start()
        try: process.join(HANGS)
        finally:
            if process.is_alive(): end(psutil.Process(process.pid))
        read = lambda name: Path(folder, name).read_text(encoding="utf-8") if Path(folder, name).exists() else ""
        return subprocess.CompletedProcess([entry, *args], process.exitcode, read("out"), read("err"))


def _as_rank(rank, work, folder):
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0) # Gloo's threads free their last tensors late, which aborts a process whose interpreter is being torn down


def two_ranks(work, folder)->list:
    "What `work(rank)` returns in each of two processes that are one another's group. Both are ended where one fails."
    import torch # after `isolate` has said how many threads it has
    import torch.multiprocessing as mp
    mp.start_processes(_as_rank, (work, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


def l2init(project, *args, **env): return forked("l2init.cli:main", *args, cwd=project, env=environment(**env))


def made(project, study):
    "A project with our experiment notebooks and a study file. On random labels, which our studies are of, nothing is drawn: half of a short run."
    shutil.copytree(ROOT / "nbs" / "experiments", project / "nbs" / "experiments")
    (project / "study.toml").write_text(study)
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in (c for c in content["cells"] if c["cell_type"] == "code"):
        text = "".join(cell["source"]).partition("fig, axes =")[0].replace("matplotlib.pyplot as plt, ", "")
        cell["source"] = [line for line in text.splitlines(keepends=True) if "l2init.plots" not in line and "plt.show()" not in text]
    notebook.write_text(json.dumps(content), encoding="utf-8")
    return project


def execute_notebook():
    "For `forked`: what `nbdev_test --path` does with a notebook."
    from nbdev.test import test_nb
    sys.exit(not test_nb(Path(sys.argv[1]), skip_flags=["notest"], basepath=ROOT)[0])
