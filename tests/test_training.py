"""Training, for every method: what is measured changes nothing, and a run that was killed goes on as if nothing had been."""
from unittest import mock

import pytest
import torch
from conftest import TINY, hyper_of

from l2init.cohorts import Cohort
from l2init.internals.engines import Engine, engine
from l2init.methods import grid, methods
from l2init.streams import stream
from l2init.training import Probes, measure, train

ALL = *methods, "l2_init + layer_norm", "redo + shrink_perturb"


def cohort_of(method, dtype=torch.float64):
    learners = grid(method, [3, 4], [1e-2, 1e-3], **{n: v[:1] for n, v in hyper_of(method).items()})
    return Cohort(learners, (1, 28, 28), 10, method, dtype=dtype, hidden=[12, 9])


def copied(cohort): return {n: t.clone() for n, t in cohort.tensors().items()}


@pytest.mark.parametrize("method", ALL)
def test_a_measurement_changes_nothing(method):
    s, cohort = stream("permuted_mnist", dataset="mnist5k", tasks=2, examples=320), cohort_of(method)
    steps = engine(cohort)
    steps.learn(s.task(0, cohort.seeds))
    kept, taken = copied(cohort), cohort.steps
    measure(steps, s.task(1, cohort.seeds), None, Probes(fresh=1, forgetting=True, plasticity=2, readiness=2, grama=True, kernel=8))
    assert cohort.steps == taken and all(torch.equal(kept[n], t) for n, t in cohort.tensors().items())


class Killed(Exception): "Stands for a kill in the middle of a task."


@pytest.mark.parametrize("method", ALL)
def test_a_killed_run_goes_on_as_if_nothing_had_been(method, tmp_path):
    s, place, learn_batches = stream("permuted_mnist", dataset="mnist5k", tasks=3, examples=160), tmp_path / "checkpoint.pt", Engine.learn_batches
    whole = cohort_of(method, torch.float32)
    expected = train(whole, s, progress=False)
    def until(self, x, y, batch):
        if self.cohort.steps < 20: return learn_batches(self, x, y, batch)
        learn_batches(self, x[:, :80], y[:, :80], batch)
        raise Killed
    with mock.patch.object(Engine, "learn_batches", until), pytest.raises(Killed): train(cohort_of(method, torch.float32), s, progress=False, checkpoint=place, every=0)
    second = cohort_of(method, torch.float32)
    assert train(second, s, progress=False, checkpoint=place, every=0).equals(expected)
    for name, tensor in whole.tensors().items(): assert torch.equal(tensor, second.tensors()[name]), name


@pytest.mark.parametrize("name", ("class_incremental_cifar100", "warm_start"))
@pytest.mark.parametrize("method", ("plain", "head_reset"))
def test_tasks_that_grow_go_on_as_if_nothing_had_been(name, method, tmp_path):
    options, network = TINY[name]
    s, place = stream(name, **options), tmp_path / "checkpoint.pt"
    def new():
        network_options = {n: v for n, v in network.items() if n != "name"}
        return Cohort(grid(method, [0, 1], [1e-3]), s.shape, s.outputs, method, "adam", network["name"], dtype=torch.float64, **network_options)
    whole, learn = new(), Engine.learn_batches
    expected = train(whole, s, progress=False)
    def until(self, x, y, batch):
        if self.cohort.steps >= s.steps_in(0) + s.steps_in(1): raise Killed
        return learn(self, x, y, batch)
    with mock.patch.object(Engine, "learn_batches", until), pytest.raises(Killed): train(new(), s, progress=False, checkpoint=place, every=0)
    assert place.exists()
    second = new()
    assert train(second, s, progress=False, checkpoint=place, every=0).equals(expected)
    assert torch.equal(second.theta, whole.theta)
