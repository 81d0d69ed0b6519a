"""What is given to data sets, streams, cohorts, training, tables and plots and cannot be used is one clear message, and never another task, another accuracy or a number that is none."""
import math

import numpy as np
import pandas as pd
import pytest
import torch

from l2init import plots, results
from l2init.cohorts import Cohort
from l2init.data import Dataset, load_dataset, synthetic_images
from l2init.internals.core import InputError
from l2init.methods import grid
from l2init.metrics import dead_share, singular_values
from l2init.streams import stream
from l2init.training import train

X, Y = torch.rand(2, 16, 1, 28, 28), torch.arange(32).view(2, 16) % 10


def digits(): return stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=2)


def cohort(**options): return Cohort(grid("plain", [0, 1], [1e-3]), (1, 28, 28), 10, "plain", hidden=[8], **options)


def opened(number):
    c = cohort()
    c.open_outputs(number)
    return c


def assigned(rate): cohort().lr = rate


def data(x=torch.zeros(3, 1, 2, 2, dtype=torch.uint8), y=torch.tensor([0, 1, 1]), std=(1.,), mean=(0.,)): return Dataset("mine", x, y, x, y, 2, mean, std)


def table(**columns):
    t = pd.DataFrame(dict(stream="random_label_mnist", method=["plain"] * 4 + ["l2"] * 4, optimizer="adam", learner=0, learning_rate=1e-3, strength=[np.nan] * 4 + [.1] * 4,
                          seed=[0, 0, 1, 1] * 2, online_accuracy=np.arange(8.) / 10, diverged=False, task=[0, 1] * 4, counts=True))
    return t.assign(**columns)


CASES = {
    "seeds that are no whole numbers": (lambda: digits().task(0, [.5]), "seeds = .0.5.: a list of whole numbers is needed"),
    "seeds that are yes or no": (lambda: digits().task(0, [True]), "seeds = .True.: a list of whole numbers is needed"),
    "seeds below zero": (lambda: digits().task(0, [-1]), "at least 0"),
    "a seed that is no list": (lambda: digits().task(0, 0), "a list of whole numbers is needed"),
    "seeds in words": (lambda: digits().task(0, ["a"]), "a list of whole numbers is needed"),
    "a task by a fraction": (lambda: digits().task(1., [0]), "Task 1.0 is not in the stream"),
    "a part of other seeds": (lambda: digits().task(0, [0, 1]).part(torch.tensor([99])), r"The task is of seeds \[0, 1\], not of \[99\]"),
    "portions of something else": (lambda: next(digits().task(0, [0]).portions("tst")), "Did you mean 'test'"),
    "portions of nothing": (lambda: next(digits().task(0, [0]).portions(size=0)), "size = 0: a whole number is needed, at least 1"),
    "no outputs that are open": (lambda: opened(0), "open_outputs = 0: a whole number is needed, at least 1"),
    "more outputs than there are": (lambda: opened(99), "open_outputs = 99: the network has 10"),
    "a label beyond the open outputs": (lambda: opened(5).step(X, Y), "there are 5 outputs that are open: 0 to 4"),
    "a rate below zero": (lambda: assigned(-1.), "A learning rate is a finite number, at least 0, and not -1"),
    "a rate that is no number": (lambda: assigned(math.nan), "and not nan"),
    "rates of another shape": (lambda: assigned(torch.ones(2)), r"of shape \(2, 1\), a row for each learner; these are of shape \(2,\)"),
    "images with gradients": (lambda: cohort().step(X.clone().requires_grad_(), Y), r"images.detach\(\)"),
    "sparse images": (lambda: cohort().step(X.to_sparse(), Y), r"images.to_dense\(\)"),
    "a learner that is not there": (lambda: cohort().module(7), "There is no learner 7: the cohort has 2"),
    "parts of nobody": (lambda: cohort().split(0), "most = 0: a whole number is needed, at least 1"),
    "a device that is none": (lambda: cohort(device="cuda0"), "The device 'cuda0' cannot be used"),
    "a stream by its name": (lambda: train(cohort(), "random_label_mnist"), "'random_label_mnist' is no stream: make it by stream"),
    "a time in words": (lambda: train(cohort(), digits(), every="a"), "every = 'a': seconds are needed"),
    "probes in a dictionary": (lambda: cohort().probe(X, Y, dict(srank="below")), r"is not Probes\(…\)"),
    "steps of no examples": (lambda: cohort().trial_plasticity(X, Y, 0, 3), "batch = 0: a whole number is needed, at least 1"),
    "more labels than images": (lambda: data(y=torch.zeros(5, dtype=torch.int64)), "images are 3, but labels are 5"),
    "a scale of nothing": (lambda: data(std=(0.,)), r"std = \(0.0,\): numbers above 0 are needed"),
    "images that are numbers": (lambda: data(x=torch.rand(3, 1, 2, 2)), "images are torch.float32 of shape"),
    "features that are not finite": (lambda: data(x=torch.full((3, 4), math.nan), mean=(), std=()), "features that are not finite"),
    "labels beyond the classes": (lambda: data(y=torch.tensor([0, 1, 2])), "labels are torch.int64 from 0 to 2; torch.int64 from 0 to 1 are needed"),
    "no name of data": (lambda: load_dataset(None), "A data set is named by a word or a path, and not None"),
    "classes below zero": (lambda: synthetic_images(-1, 5), "classes = -1: a whole number is needed"),
    "a level in percent": (lambda: results.interval([1., 2., 3.], 95), "level = 95: a share between 0 and 1 is needed"),
    "differences of other tasks": (lambda: results.differences(table(counts=[True] * 5 + [False] + [True] * 2), dict(method="plain")), "Learners have other tasks that count: l2, seed 0, has 1, and l2, seed 1, 2"),
    "a baseline by what is measured": (lambda: results.differences(table(), dict(online_accuracy=.1)), "column"),
    "a phase that is none": (lambda: results.kept("demo", phase="evaluat"), "Did you mean 'evaluate'"),
    "means of what is not there": (lambda: plots.means(table(), "online_acuracy"), "Did you mean 'online_accuracy'"),
    "sensitivity to a word": (lambda: plots.sensitivity(table(), "method"), "hyper-parameter"),
    "the best by something else": (lambda: plots.bold(table(), "mx"), "Did you mean 'max'"),
    "features of one learner": (lambda: singular_values(torch.rand(4, 3)), r"Features are \[learners, examples, features\], and not \(4, 3\)"),
    "activations of one learner": (lambda: dead_share([torch.rand(4, 3)]), r"Activations are \[learners, examples, units, …\]"),
}


@pytest.mark.parametrize("of", CASES)
def test_what_cannot_be_used_is_said(of):
    do, says = CASES[of]
    with pytest.raises(InputError, match=says): do()


def test_a_file_that_was_changed_is_read_again(tmp_path):
    def written(n): np.savez(tmp_path / "mine.npz", images=np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8), labels=np.arange(n) % 2)
    def both(): return len(load_dataset("mine.npz", str(tmp_path)).images), len(stream("random_label_mnist", dataset="mine.npz", root=str(tmp_path), tasks=1, examples=10, passes=1, batch_size=5).data().images)
    written(20)
    assert both() == (16, 16)
    written(30)
    assert both() == (24, 24)


def test_learning_rates_are_one_or_a_row_for_each_learner():
    c = cohort()
    c.lr = .5
    c.lr = c.lr / 2
    assert c.lr.tolist() == [[.25], [.25]]
