"""The same learners on a GPU. Skipped where there is none."""
import pytest
import torch
from conftest import hyper_of

from l2init.cohorts import Cohort
from l2init.internals.engines import ENGINES, engine
from l2init.methods import grid, methods
from l2init.training import train
from l2init.streams import stream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("method", methods)
def test_a_gpu_learns_what_a_cpu_learns(method):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=5)
    cpu, gpu = (train(Cohort(grid(method, [0, 1], [1e-3], **hyper_of(method)), (1, 28, 28), 10, method, device=d, dtype=torch.float64), s, progress=False) for d in ("cpu", "cuda"))
    for column in ("online_accuracy", "online_loss", "distance_from_init"): assert torch.allclose(*(torch.tensor(m[column].to_numpy()) for m in (cpu, gpu)), atol=1e-4)


def test_compiled_update_on_a_gpu():
    s = stream("random_label_mnist", dataset="mnist5k", tasks=1, examples=64, passes=5)
    eager, compiled = (Cohort(grid("l2_init", [0, 1], [1e-3], strength=[.1]), (1, 28, 28), 10, "l2_init", device="cuda") for _ in range(2))
    for cohort, engines in ((eager, ()), (compiled, ENGINES)): train(cohort, s, progress=False, engines=engines)
    assert torch.allclose(eager.theta, compiled.theta, atol=1e-4)


@pytest.mark.parametrize("method", methods)
def test_replayed_steps_on_a_gpu(method):
    "In single precision, with the optimizer compiled; and that nothing in a task is waited for."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=72, passes=5, last_batch="keep") # a last batch that is smaller
    readable, replayed = (Cohort(grid(method, [0, 1], [1e-3], **hyper_of(method)), (1, 28, 28), 10, method, device="cuda") for _ in range(2))
    train(readable, s, progress=False, engines=())
    train(replayed, s, progress=False)
    assert torch.allclose(readable.theta, replayed.theta, atol=1e-3)
    steps = engine(replayed)
    steps.learn(s.task(0, replayed.seeds))
    assert len(steps.recordings) == 2
    task = s.task(1, replayed.seeds)
    task.examples # made before
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in task.blocks(): steps.learn_batches(x, y, s.batch_size)
    finally: torch.cuda.set_sync_debug_mode("default")
