"""Methods in a loop of one's own: equal to a cohort of one, on networks of several families, with the optimizers and tools that people use."""
import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import hyper_of
from torch import nn
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from l2init.cohorts import Cohort
from l2init.drop_in import ContinualBackprop, ReDo, ShrinkPerturb, drop_in
from l2init.methods import grid
from l2init.units import reading, tensors_of, units

NETWORKS = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[4], kernels=[3], hidden=[8]), normed=dict(hidden=[12, 9], layer_norm=True))
HYPER = dict(redo=dict(period=20, threshold=.4), continual_backprop=dict(replacement_rate=.02, maturity=10), shrink_perturb=dict(shrink=1e-3, noise=1e-3),
             l2_init=dict(strength=.1), l2_init_resampled=dict(strength=.1), l2=dict(strength=.1))


def batches(n, shape=(1, 8, 8)):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, *shape, generator=g, dtype=torch.float64), torch.randint(3, (16,), generator=g)) for _ in range(n)]


@pytest.mark.parametrize("method", HYPER)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_equals_a_cohort_of_one(method, name, optimizer):
    if (method, optimizer) == ("continual_backprop", "adam"): pytest.skip("torch's Adam counts steps by parameter, a cohort's by weight")
    learners = grid(method, [5], [1e-2], **{n: [v] for n, v in HYPER[method].items()})
    cohort = Cohort(learners, (1, 8, 8), 3, method, optimizer, name.replace("normed", "mlp"), dtype=torch.float64, **NETWORKS[name])
    start, model = cohort.theta.clone(), cohort.module(0)
    opt = dict(sgd=torch.optim.SGD, adam=torch.optim.Adam)[optimizer](model.parameters(), lr=1e-2)
    data = batches(200)
    handle = drop_in(method, model, opt, example=data[0][0], seed=5, **HYPER[method])
    for x, y in data:
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
        cohort.step(x[None], y[None])
    mine = cohort.network.stack([model])
    assert torch.allclose(mine, cohort.theta, rtol=0, atol=1e-6), (mine - cohort.theta).abs().max()
    plain = Cohort(grid("plain", [5], [1e-2]), (1, 8, 8), 3, "plain", optimizer, name.replace("normed", "mlp"), dtype=torch.float64, **NETWORKS[name])
    assert torch.equal(plain.theta, start)
    for x, y in data: plain.step(x[None], y[None])
    assert not torch.allclose(mine, plain.theta, rtol=0, atol=1e-3) # the method has done something
    handle.remove()
