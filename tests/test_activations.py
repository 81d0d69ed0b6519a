"""Methods that change what units give or what comes in: the same learner, however it is trained."""
import pytest
import torch

from l2init.cohorts import Cohort
from l2init.methods import grid
from l2init.streams import stream
from l2init.training import train

ALL = "leaky_relu", "smooth_leaky", "fourier_features", "aid", "adalin", "input_normalization"
NETS = dict(mlp=dict(hidden=[9, 7]), cnn=dict(channels=[3, 4], kernels=[3, 3], hidden=[9]))
METRICS = ["online_accuracy", "online_loss", "end_accuracy", "srank", "weight_magnitude", "dormant_share"]


def digits():
    return stream("random_label_mnist", dataset="mnist5k", tasks=3, examples=64, passes=2)


def cohort(method, network, seeds=(0, 1), rates=(1e-2, 1e-3), dtype=torch.float32):
    s = digits()
    return Cohort(grid(method, list(seeds), list(rates)), s.data().images.shape[1:], s.outputs, method, "adam",
                  network, dtype=dtype, **NETS[network])


@pytest.mark.parametrize("network", NETS)
@pytest.mark.parametrize("method", ALL)
def test_fast_is_readable_and_alone_is_together(method, network):
    fast = cohort(method, network, dtype=torch.float64)
    slow = cohort(method, network, dtype=torch.float64)
    a, b = train(fast, digits(), False), train(slow, digits(), False, engines=())
    assert torch.allclose(fast.theta, slow.theta, atol=1e-7)
    assert a.online_accuracy.equals(b.online_accuracy)
    assert not torch.equal(fast.theta, fast.theta0)
    alone = cohort(method, network, seeds=[1], rates=[1e-3], dtype=torch.float64)
    train(alone, digits(), False, engines=())
    k = fast.learners.index[(fast.learners.seed == 1) & (fast.learners.learning_rate == 1e-3)][0]
    assert torch.allclose(alone.theta[0], fast.theta[k], atol=1e-7)


@pytest.mark.parametrize("method", ALL)
def test_resumed_is_uninterrupted(method, tmp_path, monkeypatch):
    whole = cohort(method, "mlp")
    expected = train(whole, digits(), False)
    import l2init.training as training
    learned, count = training.learn_task, []
    def twice(*args):
        if len(count) == 2: raise KeyboardInterrupt
        count.append(1)
        return learned(*args)
    monkeypatch.setattr(training, "learn_task", twice)
    with pytest.raises(KeyboardInterrupt):
        train(cohort(method, "mlp"), digits(), False, tmp_path / "c.pt", every=0)
    monkeypatch.undo()
    resumed = cohort(method, "mlp")
    found = train(resumed, digits(), False, tmp_path / "c.pt", every=0)
    assert torch.equal(resumed.theta, whole.theta)
    assert found[METRICS].equals(expected[METRICS])


@pytest.mark.parametrize("method", ["aid", "input_normalization"])
def test_probes_change_nothing_and_see_a_network_at_rest(method):
    c, s = cohort(method, "mlp"), digits()
    train(c, s, False)
    task = s.task(0, c.seeds)
    before = {n: t.clone() for n, t in c.tensors().items()}
    first, again = c.accuracy(*task.test), c.accuracy(*task.test)
    c.probe(*task.test)
    assert torch.equal(first, again)
    assert all(torch.equal(t, before[n]) for n, t in c.tensors().items())
    x = c.per_learner(task.test[0])
    plain = c.module(1).eval()
    logits = c.network.forward(c.params, x)[0]
    assert torch.allclose(plain(x[1]), logits[1], atol=1e-4)
    steps = train(cohort(method, "mlp"), s, False, fresh=1) # a fresh network starts with fresh buffers
    assert torch.allclose(torch.tensor(steps.fresh_accuracy[steps.task == 0].values),
                          torch.tensor(steps.online_accuracy[steps.task == 0].values))
