"""Data of the user's own: from a folder of PNGs to a figure; and whatever its shape, learning is learning."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from processes import l2init
from torch.nn import functional as F

from l2init.cohorts import Cohort
from l2init.data import load_dataset
from l2init.internals.core import InputError
from l2init.methods import grid
from l2init.streams import stream
from l2init.training import train

STUDY = """
seeds = [0, 1]
report = "overview"
[[streams]]
name = "random_label_mnist"
dataset = "./images"
tasks = 2
examples = 16
passes = 2
batch_size = 8
[[methods]]
name = "plain"
[[optimizers]]
name = "adam"
learning_rate = [1e-3]
[[networks]]
name = "mlp"
hidden = [8]
"""


@pytest.fixture
def project(tmp_path):
    "A folder with nothing but a study file and PNGs of two classes."
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10): Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


@pytest.mark.long
def test_from_a_folder_of_images_to_a_figure(project):
    first = l2init(project, "run", "study.toml", "--workers", "1")
    assert first.returncode == 0, first.stderr
    assert all((project / line).stat().st_size > 10_000 for line in first.stdout.splitlines() if line.endswith(".png"))
    assert first.stdout.count(".png") == 3
    shutil.copytree(project / "images", project / "elsewhere" / "images") # a copy is the same data
    for folder in ("left", "right"): (project / "images" / folder / ".hidden").write_text("not an image")
    assert "1 of them done already" in l2init(project, "run", "study.toml").stderr
    (project / "study.toml").write_text(STUDY.replace('"./images"', '"./images"\nroot = "elsewhere"'))
    assert "1 of them done already" in l2init(project, "run", "study.toml").stderr
    assert l2init(project, "keep", "study.toml").returncode == 0
    digest, = json.loads((project / "results" / "study.json").read_text())["data"].values()
    params, = (project / "runs" / "study").glob("*/params.json")
    assert json.loads(params.read_text())["data"] == [digest] and len(digest) == 64

    shutil.rmtree(project / "elsewhere") # the results outlive the data
    table = l2init(project, "table", "study.toml", "--csv")
    assert table.returncode == 0 and "./images" in table.stdout, table.stderr
    gone = l2init(project, "run", "study.toml")
    assert gone.returncode == 2 and "nothing is there" in gone.stderr and len(gone.stderr.splitlines()) == 1
    (project / "study.toml").write_text(STUDY)
    (project / "images" / "left" / "0.png").unlink() # other data, other runs
    assert "waiting" in l2init(project, "status", "study.toml").stdout


MISTAKES = {
    "too few": ("examples = 16", "examples = 17", "which has 16"),
    "no such folder": ('"./images"', '"./imags"', "nothing is there"),
    "a name": ('"./images"', '"images"', "named by a path, as ./pictures"),
    "scaling": ("passes = 2", 'passes = 2\nscaling = "cifar10"', None), # three channels: it fits
    "features in a cnn": ('"./images"', '"f.npz"', "take the mlp"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_said_before_any_work(project, mistake):
    old, new, says = MISTAKES[mistake]
    np.savez(project / "f.npz", features=np.eye(40), labels=np.arange(40) % 2)
    study = STUDY.replace('name = "mlp"\nhidden = [8]', 'name = "cnn"') if "cnn" in mistake else STUDY
    (project / "study.toml").write_text(study.replace(old, new))
    ended = l2init(project, "run", "study.toml", *(["--dry-run"] if says is None else []))
    if says is None: assert ended.returncode == 0 and "about " in ended.stdout and " for what is not done" in ended.stdout, ended.stderr
    else: assert ended.returncode == 2 and says in ended.stderr and len(ended.stderr.splitlines()) == 1 and not (project / "runs").exists()


SHAPES = dict(grey=(9, 7), colour=(11, 12, 3), features=None)


def own(folder, kind):
    "A file of 60 examples in three classes."
    random, labels = np.random.default_rng(1), np.arange(60) % 3
    x = dict(features=random.normal(labels[:, None], 1, (60, 6))) if kind == "features" else dict(images=random.integers(0, 256, (60, *SHAPES[kind]), dtype=np.uint8))
    np.savez(folder / f"{kind}.npz", labels=labels, **x)
    return dict(dataset=f"{kind}.npz", root=str(folder), tasks=2, examples=32, passes=2, batch_size=8)


NETWORKS = dict(mlp=dict(hidden=[5, 4]), cnn=dict(channels=[3], kernels=[3], hidden=[5]))


@pytest.mark.parametrize("kind, network", [("grey", "mlp"), ("colour", "mlp"), ("features", "mlp"), ("grey", "cnn"), ("colour", "cnn")])
@pytest.mark.parametrize("name", ["permuted_mnist", "random_label_mnist"])
def test_engines_are_the_readable_step(tmp_path, kind, network, name):
    s = stream(name, **own(tmp_path, kind))
    def trained(seeds, **how):
        cohort = Cohort(grid("l2_init", seeds, [1e-2], strength=[.1]), s.data().images.shape[1:], s.outputs, "l2_init", "adam", network, **NETWORKS[network])
        return train(cohort, s, progress=False, **how), cohort.theta
    (fast, theta), (readable, expected) = trained([0, 1]), trained([0, 1], engines=())
    assert torch.allclose(theta, expected, atol=1e-4) and np.allclose(fast.online_loss, readable.online_loss, atol=1e-4)
    assert torch.allclose(trained([1])[1][0], theta[1], atol=1e-5) # alone or in company


@pytest.mark.parametrize("kind, network", [("features", "mlp"), ("colour", "cnn")])
def test_a_plain_loop_learns_the_same(tmp_path, kind, network):
    s = stream("permuted_mnist", **own(tmp_path, kind))
    cohort = Cohort(grid("plain", [3], [.05]), s.data().images.shape[1:], s.outputs, "plain", "sgd", network, **NETWORKS[network])
    model = cohort.network.module(cohort.theta[0].clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=.05)
    for t in range(s.tasks):
        for x, y in s.task(t, [3]).batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x[0]), y[0]).backward()
            optimizer.step()
    start = cohort.theta.clone()
    train(cohort, s, progress=False)
    assert torch.allclose(cohort.network.stack([model])[0], cohort.theta[0], atol=1e-5) and not torch.allclose(start, cohort.theta)


def test_what_hugging_face_has_saved(tmp_path):
    hf, random = pytest.importorskip("datasets"), np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8), [0, 1] * 6
    features = hf.Features(dict(image=hf.Image(), label=hf.ClassLabel(names=["a", "b"])))
    saved = hf.Dataset.from_dict(dict(image=[Image.fromarray(i) for i in images], label=labels), features=features)
    saved.save_to_disk(tmp_path / "one")
    hf.DatasetDict(train=saved, test=saved.select(range(4))).save_to_disk(tmp_path / "two")
    one, two = (load_dataset(name, tmp_path) for name in ("./one@4x5", "./two"))
    assert one.images.shape == (10, 3, 4, 5) and len(one.test_images) == 2
    assert np.array_equal(two.images.permute(0, 2, 3, 1), images) and two.labels.tolist() == labels and two.test_labels.tolist() == labels[:4]
    hf.Dataset.from_dict(dict(x=[1, 2], label=[0, 1])).save_to_disk(tmp_path / "bad")
    with pytest.raises(InputError, match="one of images and one of class labels"): load_dataset("./bad", tmp_path)
