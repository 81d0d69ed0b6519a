"""The benchmark can make a cohort of each method, which would otherwise be found out after an hour of it."""
import json
import sys

import pytest
from processes import ROOT

from l2init.cohorts import Cohort
from l2init.methods import methods
from l2init.networks import networks
from l2init.streams import streams


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import throughput
    yield throughput
    for name in ("throughput", "plain", "drop_in", "gpu"): sys.modules.pop(name, None)


@pytest.mark.parametrize("method", methods)
def test_every_method_can_be_measured(throughput, method):
    cohort = Cohort(throughput.learners_of(method, 24), (1, 28, 28), 10, method, "adam", hidden=[10])
    assert len(cohort) == 24 and set(methods[method].hyper.model_fields) <= set(cohort.learners)


def test_every_work_names_what_there_is(throughput):
    for options, network, optimizer, method, hyper, _ in throughput.WORKS.values():
        assert options["name"] in streams and network in networks and methods[method].suits(optimizer)
        assert len(throughput.learners(method, hyper, 24, 2)) == 24


def test_cohorts_of_modules_can_be_measured(throughput, monkeypatch):
    import gpu
    monkeypatch.setattr(gpu, "CIFAR", dict(gpu.CIFAR, tasks=1, examples=32, passes=1))
    rates = gpu.of_module("resnet18", 1, dict(width=2), (1, 2), "cpu")
    assert list(rates) == [1, 2, 0] and min(rates.values()) > 0


def test_what_a_drop_in_costs_can_be_measured(throughput, monkeypatch):
    import drop_in
    monkeypatch.setattr(drop_in, "methods", {m: methods[m] for m in ("l2_init", "redo", "fire", "crelu")})
    out = drop_in.of_network("mlp", 1)
    assert list(out["step"]) == ["l2_init", "redo"] and list(out["refused"]) == ["crelu"] and "fire" in out["boundary"]
    assert drop_in.hyper_of("redo") == dict(period=1, threshold=.1), "it acts at every step"


def test_the_costs_that_are_kept_are_of_today_s_methods():
    kept = json.loads((ROOT / "benchmarks/results_drop_in.json").read_text())
    for of in kept["networks"].values():
        assert {*of["step"], *of["boundary"], *of["refused"]} == {*methods}
        for t in (of["measure"], *of["step"].values(), *of["boundary"].values()): assert 0 < t["low"] <= t["median"] <= t["high"]
