"""The compiled update against the readable one, and the warning where it cannot be compiled."""
import pytest
import torch
from conftest import hyper_of

from l2init import cohorts
from l2init.cohorts import Cohort, grid, methods, train
from l2init.streams import stream


def trained(method, compile):
    "The weights after 60 steps of four learners."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=96, passes=5)
    cohort = Cohort(grid(method, [0, 1], [1e-2, 1e-3], **hyper_of(method)), (1, 28, 28), 10, method, hidden=[20], dtype=torch.float64, compile=compile)
    train(cohort, s, progress=False)
    return cohort.theta


@pytest.mark.parametrize("method", methods)
def test_compiled_equals_readable(method):
    if not cohorts.can_compile(): pytest.skip("no C++ compiler")
    assert torch.allclose(trained(method, True), trained(method, False), atol=1e-9)


def test_without_a_compiler_a_warning_says_so(monkeypatch):
    def broken(*args, **kwargs): raise RuntimeError("no C++ compiler")
    monkeypatch.setattr(torch, "compile", broken)
    cohorts.can_compile.cache_clear()
    with pytest.warns(UserWarning, match="torch.compile does not work here.*no C\\+\\+ compiler"): theta = trained("l2_init", True)
    cohorts.can_compile.cache_clear()
    assert torch.equal(theta, trained("l2_init", False))
