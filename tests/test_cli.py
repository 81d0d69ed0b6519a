"""The command line from outside: a study from start to table, again, with a failing run, and mistakes."""
import csv
import io
import json
import math
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
from conftest import STUDY
from processes import BIN, HANGS, ROOT, l2init, made, started

from l2init.data import ALIKE, load_dataset

ONE = STUDY.replace('[[methods]]\nname = "l2_init"\nstrength = [1e-2, 1e-3]\n', "") # one run


@pytest.fixture
def project(tmp_path):
    "A project of its own."
    return made(tmp_path, STUDY)


@pytest.fixture
def done(finished, tmp_path):
    "A copy of a project whose study is done."
    return Path(shutil.copytree(finished[0], tmp_path / "done"))


@pytest.mark.xdist_group("finished")
def test_a_study_from_start_to_table(project, done, finished):
    dry = l2init(project, "run", "study.toml", "--dry-run")
    assert dry.returncode == 0 and "total: 2 runs, 6 learners, 48 learner-steps" in dry.stdout and not (project / "runs").exists()
    assert "waiting" in l2init(project, "status", "study.toml").stdout

    project, said = done, finished[1]
    folders = sorted(f for f in (project / "runs" / "study").iterdir() if f.is_dir())
    assert len(folders) == 2
    for folder in folders: assert {"params.json", "run.ipynb", "metrics.parquet", "env.json", "done"} <= {p.name for p in folder.iterdir()}
    stamps = [(f / "metrics.parquet").stat().st_mtime_ns for f in folders]

    rows = list(csv.DictReader(io.StringIO(l2init(project, "table", "study.toml", "--csv").stdout)))
    assert list(rows[0]) == ["stream", "dataset", "method", "optimizer", "learning_rate", "strength", "seeds", "online_accuracy", "ci_low", "ci_high", "iqm", "last_tenth", "diverged"]
    assert sorted((r["method"], r["strength"], r["seeds"]) for r in rows) == [("l2_init", "0.001", "2"), ("l2_init", "0.01", "2"), ("plain", "", "2")]
    assert all(0 <= float(r["online_accuracy"]) <= 1 for r in rows)

    again = l2init(project, "run", "study.toml")
    assert again.returncode == 0 and "2 of them done already" in again.stderr and again.stdout == said
    assert stamps == [(f / "metrics.parquet").stat().st_mtime_ns for f in folders]

    kept = l2init(project, "keep", "study.toml")
    assert kept.returncode == 0 and json.loads((project / "results" / "study.json").read_text())["learners"] == 6


def test_a_run_that_fails_is_recorded_and_the_others_go_on(project):
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    content = json.loads(notebook.read_text())
    training = next(c for c in content["cells"] if "train(cohort, s," in "".join(c["source"]))
    training["source"] += ["\n", "if method == 'plain': raise RuntimeError('out of luck')"]
    notebook.write_text(json.dumps(content))

    ended = l2init(project, "run", "study.toml", "--workers", 2)
    assert ended.returncode == 1 and "RuntimeError: out of luck" in ended.stderr
    status = l2init(project, "status", "study.toml").stdout
    assert "failed" in status and "done" in status and "out of luck" in status
    failed, = (project / "runs" / "study").glob("*/error.txt")
    assert "Traceback" in failed.read_text() and (failed.parent / "run.ipynb").exists()
    assert [r["method"] for r in csv.DictReader(io.StringIO(l2init(project, "table", "study.toml", "--csv").stdout))] == ["l2_init"] * 2


MISTAKES = {
    "unknown stream": ('"random_label_mnist"', '"random_label_minst"', "Did you mean 'random_label_mnist'"),
    "unknown method": ('"l2_init"', '"l2init"', "Did you mean 'l2_init'"),
    "unknown optimizer": ('"adam"', '"adm"', "Did you mean 'adam'"),
    "unknown data set": ('"mnist5k"', '"mnst5k"', "Did you mean 'mnist5k'"),
    "unknown parameter": ("passes", "pases", "Did you mean 'passes'"),
    "unknown hyper-parameter": ("strength", "strenght", "Did you mean 'strength'"),
    "unknown key": ("seeds", "sedes", "Did you mean 'seeds'"),
    "wrong type": ("tasks = 2", 'tasks = "two"', "tasks = 'two'"),
    "negative rate": ("[1e-3]\n[[networks]]", "[-1e-3]\n[[networks]]", "learning_rate = -0.001"),
    "negative strength": ("[1e-2, 1e-3]", "[-1e-2]", "strength = -0.01"),
    "empty grid": ("[1e-2, 1e-3]", "[]", "strength is an empty list"),
    "not TOML": ("seeds = [0, 1]", "seeds = [0, 1", "is not TOML"),
    "batch larger than the task": ("examples = 32", "examples = 8", "a batch of 16 is larger than the task"),
    "missing data set": ('dataset = "mnist5k"', 'dataset = "mnist"\nroot = "/proc/nothing"', "cannot be read from /proc/nothing"),
    "task larger than the data set": ("examples = 32", "examples = 5000", "which has 4000"),
    "an option of something else": ("passes = 2", "passes = 2\nseeds = [7]", "Unknown option of stream random_label_mnist 'seeds'"),
    "no learning rate": ("learning_rate = [1e-3]\n", "", "learning_rate, a list, is missing"),
    "unknown report": ("seeds = [0, 1]", 'seeds = [0, 1]\nreport = "dmo"', "Unknown report 'dmo'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_clear_message_before_any_work(project, mistake):
    old, new, says = MISTAKES[mistake]
    assert old in STUDY
    (project / "study.toml").write_text(STUDY.replace(old, new))
    ended = l2init(project, "run", "study.toml")
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr and ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1 and not (project / "runs").exists()


def test_an_output_folder_that_cannot_be_written(project):
    ended = l2init(project, "run", "study.toml", "--runs", "/proc/runs")
    assert ended.returncode == 2 and "l2init: The output folder /proc/runs/study cannot be written" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


def test_a_study_that_is_not_there(project):
    ended = l2init(project, "run", "studdy.toml")
    assert ended.returncode == 2 and "Did you mean 'study.toml'" in ended.stderr


def test_methods_and_streams_are_listed(project):
    assert "l2_init_resampled" in l2init(project, "methods").stdout
    assert "permuted_mnist: Permuted MNIST" in l2init(project, "streams").stdout


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_stopping_stops_the_runs_and_the_same_command_goes_on(project, how):
    (project / "study.toml").write_text(STUDY.replace("tasks = 2", "tasks = 100000"))
    in_background = how == "SIGTERM" # where a shell lets its children ignore SIGINT
    deadline = time.monotonic() + HANGS
    with started([BIN / "l2init", "run", "study.toml", "--workers", "1"], ignores_sigint=in_background, cwd=project) as command:
        while "running" not in l2init(project, "status", "study.toml").stdout:
            assert time.monotonic() < deadline and command.poll() is None
            time.sleep(.5)
        command.send_signal(getattr(signal, how))
        _, errors = command.communicate(timeout=HANGS)
    assert command.returncode == 130 and "Stopped. The same command goes on where it was." in errors and "Traceback" not in errors
    assert l2init(project, "status", "study.toml").stdout.count("waiting") == 2


def test_two_readings_of_a_stream_stay_apart(project):
    (project / "study.toml").write_text(ONE.replace("[[methods]]", '[[streams]]\nname = "random_label_mnist"\ndataset = "mnist5k"\ntasks = 2\nexamples = 32\npasses = 2\nlabels = "permuted"\n[[methods]]', 1))
    assert l2init(project, "run", "study.toml").returncode == 0
    rows = list(csv.DictReader(io.StringIO(l2init(project, "table", "study.toml", "--csv").stdout)))
    assert sorted((r["labels"], r["method"]) for r in rows) == [("permuted", "plain"), ("uniform", "plain")]


def test_a_study_of_two_phases(project):
    (project / "study.toml").write_text("select_seeds = [7, 8]\n" + STUDY.replace('[[methods]]\nname = "plain"\n', ""))
    dry = l2init(project, "run", "study.toml", "--dry-run")
    assert dry.returncode == 0 and "total: 2 runs (1 of them evaluate what the others select), 6 learners, 48 learner-steps" in dry.stdout and "for what is not done" in dry.stdout
    assert "1 more will evaluate what these select." in l2init(project, "status", "study.toml").stdout
    assert l2init(project, "table", "study.toml").returncode == 2 and l2init(project, "keep", "study.toml").returncode == 2
    ran = l2init(project, "run", "study.toml")
    assert ran.returncode == 0 and "[2/2 done" in ran.stderr, ran.stderr
    evaluated, tried = ([*csv.DictReader(io.StringIO(l2init(project, "table", "study.toml", "--csv", *more).stdout))] for more in ((), ("--select",)))
    assert [r["method"] for r in evaluated] == ["l2_init"] and len(tried) == 2
    best = max(tried, key=lambda r: float(r["online_accuracy"]))
    assert [r["strength"] for r in evaluated] == [best["strength"]]
    again = l2init(project, "run", "study.toml")
    assert again.returncode == 0 and "2 of them done already" in again.stderr


@pytest.mark.xdist_group("finished")
def test_results_of_other_code_are_called_so_and_done_anew_on_request(done):
    project = done
    assert "other code" not in l2init(project, "status", "study.toml").stdout
    first, second = sorted((project / "runs" / "study").glob("*/env.json"))
    env = json.loads(first.read_text())
    assert env["code"] and env["dirty"] in (True, False)
    first.write_text(json.dumps(env | dict(code="other")))
    says = "1 of 2 runs were made by other code than the present one"
    assert says in l2init(project, "status", "study.toml").stdout and says in l2init(project, "table", "study.toml").stderr
    stamps = [f.with_name("metrics.parquet").stat().st_mtime_ns for f in (first, second)]
    kept = l2init(project, "run", "study.toml")
    assert says in kept.stderr and [f.with_name("metrics.parquet").stat().st_mtime_ns for f in (first, second)] == stamps
    before = first.with_name("metrics.parquet").read_bytes()
    anew = l2init(project, "run", "study.toml", "--again")
    assert anew.returncode == 0 and anew.stdout == kept.stdout, anew.stderr
    assert json.loads(first.read_text())["code"] == env["code"] and second.with_name("metrics.parquet").stat().st_mtime_ns == stamps[1]
    assert (first.parents[1] / f"{first.parent.name}.other" / "metrics.parquet").read_bytes() == before # nothing is lost
    assert says not in l2init(project, "status", "study.toml").stdout


@pytest.mark.xdist_group("finished")
def test_the_scale_is_said_beside_every_result(project, done):
    says = "Random-label MNIST on mnist5k: 2 tasks of 32 examples, 2 passes in batches of 16, 4 steps a task; not as in Kumar et al. 2023, table 1: mnist5k instead of mnist, 2 of 50 tasks, 32 of 1,200 examples, 2 of 400 passes, hidden = [8] instead of [100, 100]. 6 learners."
    assert says in l2init(project, "run", "study.toml", "--dry-run").stdout and says in l2init(project, "status", "study.toml").stdout
    project = done
    assert says in l2init(project, "run", "study.toml").stderr and says in l2init(project, "table", "study.toml").stderr
    assert l2init(project, "keep", "study.toml").returncode == 0
    assert json.loads((project / "results" / "study.json").read_text())["scale"] == [says]


def test_a_study_without_its_data_shows_its_scale_and_refuses_to_run(project):
    nowhere = dict(L2INIT_DATA=str(project / "nowhere"))
    short = 'seeds = [0]\n[[streams]]\nname = "{}"\n[[methods]]\nname = "plain"\noptimizers = [{{name = "adam", learning_rate = [1e-3]}}]\n'
    (project / "study.toml").write_text(short.format("continual_imagenet"))
    dry = l2init(project, "run", "study.toml", "--dry-run", **nowhere)
    assert dry.returncode == 0 and "500 tasks of 1,200 examples, 10 passes in batches of 100, 120 steps a task; as in Kumar et al. 2023" in dry.stdout
    assert "imagenet32" in dry.stdout and "measured for some steps on synthetic_images_1000x700, once" in dry.stdout and "It cannot be run yet: Data set 'imagenet32'" in dry.stdout
    ran = l2init(project, "run", "study.toml", **nowhere)
    assert ran.returncode == 2 and "Put train_data_batch_1.npz" in ran.stderr and not (project / "runs").exists()
    (project / "study.toml").write_text(short.format("label_permuted_emnist"))
    dry = l2init(project, "run", "study.toml", "--dry-run", **nowhere)
    assert dry.returncode == 0 and "No estimate of time: Data set 'emnist" in dry.stdout


@pytest.mark.parametrize("name", ALIKE)
def test_data_alike_has_images_and_classes_of_the_same_sizes(name):
    shapes = dict(mnist=((1, 28, 28), 10), cifar10=((3, 32, 32), 10), cifar100=((3, 32, 32), 100), imagenet32=((3, 32, 32), 1000))
    data = load_dataset(ALIKE[name])
    assert (tuple(data.images[torch.tensor([0])].shape[1:]), data.classes) == shapes[name]


def test_the_code_protocol(project):
    (project / "study.toml").write_text('protocol = "code"\n' + ONE.replace("passes = 2", "passes = 2\nbatch_size = 8"))
    assert l2init(project, "run", "study.toml").returncode == 0
    params = [json.loads(p.read_text()) for p in (project / "runs" / "study").glob("*/params.json")]
    assert params and all(p["labels"] == "permuted" and p["last_batch"] == "drop" and p["probes"].items() >= {"examples_of": "next", "srank": "below"}.items() for p in params)


def test_data_on_a_relative_path(project):
    "The folder with the data is found from where the command was typed, and is no part of a run's identity."
    raw = project / "mydata" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 20)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + bytes(i % 10 for i in range(math.prod(shape))))
    (project / "study.toml").write_text(ONE.replace('"mnist5k"', '"mnist"\nroot = "mydata"'))
    assert l2init(project, "run", "study.toml").returncode == 0
    (project / "study.toml").write_text(ONE.replace('"mnist5k"', '"mnist"'))
    assert "1 of them done already" in l2init(project, "run", "study.toml", L2INIT_DATA="mydata").stderr
    shutil.rmtree(project / "mydata")
    assert l2init(project, "table", "study.toml", "--csv").stdout.count("mnist") == 2


@pytest.mark.parametrize("options, says", [(("--workers", 0), "workers = 0: it must be more than 0"), (("--timeout", "nan"), "timeout = nan: it must be more than 0"), (("--checkpoint-every", -1), "checkpoint_every = -1.0: it must be a number of seconds, at least 0")], ids=str)
def test_options_that_cannot_be(project, options, says):
    ended = l2init(project, "run", "study.toml", *options)
    assert ended.returncode == 2 and says in ended.stderr and len(ended.stderr.splitlines()) == 1 and not (project / "runs").exists()


def test_without_slurm_one_clear_error(project):
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "sbatch").exists())
    ended = l2init(project, "run", "study.toml", "--slurm", PATH=path)
    assert ended.returncode == 2 and "needs Slurm's sbatch on the PATH" in ended.stderr and len(ended.stderr.splitlines()) == 1 and not (project / "runs").exists()
