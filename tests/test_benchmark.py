"""The benchmark can make a cohort of each method, which would otherwise be found out after an hour of it."""
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
    for name in ("throughput", "plain"): sys.modules.pop(name, None)


@pytest.mark.parametrize("method", methods)
def test_every_method_can_be_measured(throughput, method):
    cohort = Cohort(throughput.learners_of(method, 24), (1, 28, 28), 10, method, "adam", hidden=[10])
    assert len(cohort) == 24 and set(methods[method].hyper.model_fields) <= set(cohort.learners)


def test_every_work_names_what_there_is(throughput):
    for options, network, optimizer, method, hyper, _ in throughput.WORKS.values():
        assert options["name"] in streams and network in networks and methods[method].suits(optimizer)
        assert len(throughput.learners(method, hyper, 24, 2)) == 24
