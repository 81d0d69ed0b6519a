import hashlib
import os
import shutil
import subprocess
import sys

import pytest
from processes import BIN, ROOT, isolate, made, run

isolate()

# A value for each hyper-parameter that has no default, so that every method can be tried.
HYPER = dict(strength=[.1, .01], delta=[.05], shrink=[.1, .01], noise=[.01], period=[7, 9], threshold=[.5], replacement_rate=[.1, .01], maturity=[5], importance=[10., 1.], share=[.1, .3], percentile=[.9, .5], update_every=[1], lowest=[16], highest=[48])

OWN = dict(parseval=dict(strength=[1e-3, 1e-4])) # its strength counts by (64 / units)², and the networks here are tiny


def hyper_of(method):
    from l2init.methods import methods
    return OWN.get(method) or {n: HYPER[n] for n in methods[method].hyper.model_fields if n in HYPER}


# Each stream, tiny: options, and the options of its network.
TINY = dict(
    permuted_mnist=(dict(dataset="mnist5k", tasks=3, examples=64), dict(name="mlp", hidden=[10])),
    random_label_mnist=(dict(dataset="mnist5k", tasks=3, examples=32, passes=2), dict(name="mlp", hidden=[10])),
    random_label_cifar10=(dict(dataset="photo_patches", tasks=3, examples=32, passes=2), dict(name="cnn", channels=[3, 4], hidden=[8])),
    five_plus_one_cifar100=(dict(dataset="synthetic_images_12x14", tasks=3, each=12, examples=60, batch_size=8, passes=1), dict(name="cnn", channels=[3, 4], hidden=[8])),
    continual_imagenet=(dict(dataset="synthetic_images_6x42", tasks=3, each=36, examples=72, batch_size=24, passes=2), dict(name="cnn", channels=[3, 4], hidden=[8])),
    online_permuted_mnist=(dict(dataset="mnist5k", tasks=2, examples=12), dict(name="mlp", hidden=[10])),
    input_permuted_mnist=(dict(dataset="mnist5k", tasks=2, examples=12), dict(name="mlp", hidden=[10])),
    label_permuted_cifar10=(dict(dataset="synthetic_images_10x14", tasks=2, examples=12), dict(name="cnn", channels=[3, 4], hidden=[8])),
    label_permuted_emnist=(dict(dataset="mnist5k", tasks=2, examples=12), dict(name="mlp", hidden=[10])),
    warm_start=(dict(dataset="mnist5k", tasks=3, examples=48, passes=2, batch_size=8, noise=.5), dict(name="mlp", hidden=[10])),
    class_incremental_cifar100=(dict(dataset="synthetic_images_8x14", tasks=3, more=2, each=12, examples=72, batch_size=8, passes=1), dict(name="cnn", channels=[3, 4], hidden=[8])),
)


# A study that many tests need done.

STUDY = """
seeds = [0, 1]
[[streams]]
name = "random_label_mnist"
dataset = "mnist5k"
tasks = 2
examples = 32
passes = 2
[[methods]]
name = "plain"
[[methods]]
name = "l2_init"
strength = [1e-2, 1e-3]
[[optimizers]]
name = "adam"
learning_rate = [1e-3]
[[networks]]
name = "mlp"
hidden = [8]
"""


@pytest.fixture(autouse=True)
def no_plugins():
    "What a study has told all later processes is not told to those of other tests."
    yield
    os.environ.pop("L2INIT_PLUGINS", None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    "A project whose study the command itself has done, and what it said. Tests work on copies; those that do are in the group `finished`."
    project = made(tmp_path_factory.mktemp("finished"), STUDY)
    ended = run([BIN / "l2init", "run", "study.toml", "--workers", 2], cwd=project)
    assert ended.returncode == 0, ended.stderr
    return project, ended.stdout


# Before the workers start: what each of them would compile is compiled once.

def pytest_configure(config):
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None) or config.option.collectonly: return
    kernels, stamp = ROOT / "l2init" / "internals" / "kernels.py", ROOT / "l2init" / "internals" / "__pycache__" / "kernels.tested"
    digest = hashlib.sha256(kernels.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest: return
    print("Compiling the kernels, the first time here.", flush=True)
    stamp.parent.mkdir(exist_ok=True)
    compiling = [subprocess.Popen([sys.executable, ROOT / "tests" / "compile_kernels.py", dtype]) for dtype in ("float32", "float64")]
    if not any([p.wait() for p in compiling]): stamp.write_text(digest)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"): shutil.rmtree(os.environ["TESTS_FOLDER"], ignore_errors=True)


# The order of work: what takes long begins first, so that no worker is left alone with it at the end.

def pytest_collection_modifyitems(items):
    def rank(item): return 0 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("long") else 2
    items.sort(key=rank)
