"""Cohorts of any `nn.Module`: each learner does what a plain PyTorch loop would do, alone or with others, killed or not."""
import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import hyper_of
from torch import nn
from torchvision.ops import StochasticDepth

from l2init.cohorts import Cohort
from l2init.internals import engines
from l2init.internals.core import InputError
from l2init.internals.random_numbers import key
from l2init.methods import grid
from l2init.metrics import srank
from l2init.modules import KeyedDropout, ModuleArchitecture, module_weights
from l2init.networks import network
from l2init.streams import stream
from l2init.training import Probes, train
from l2init.units import units

RESNET = dict(network_name="resnet18", width=2)
NETWORKS = dict(group=dict(RESNET), batch=dict(RESNET, norm="batch"),
                vit=dict(network_name="vit_small", layers=1, heads=2, width=8, hidden=12))
CONVOLUTIONAL = dict(NETWORKS, **{"in groups": dict(network_name="module", factory=lambda shape, classes: nn.Sequential(
    nn.Conv2d(1, 8, 5, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)))})
SMALL = dict(NETWORKS, dropout=dict(NETWORKS["vit"], dropout=.3))
HYPER = dict(plain={}, l2_init=dict(strength=[1e-1, 1e-2]), shrink_perturb=dict(shrink=[1e-2], noise=[1e-2]), ewc=dict(importance=[10.]), dash=dict(mix=[.3], floor=[.2]),
             redo=dict(period=[2], threshold=[.5], judged_on=["next_test"]))


def cohort_of(name, method="l2_init", seeds=(0, 1), dtype=torch.float64, optimizer="adam", shape=(1, 8, 8)):
    learners = grid(method, [*seeds], [1e-3, 1e-2], **HYPER[method])
    return Cohort(learners, shape, 10, method, optimizer, dtype=dtype, **SMALL[name])


def batches(seeds=2, steps=4, shape=(1, 8, 8)):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(seeds, 6, *shape, generator=g, dtype=torch.float64), torch.randint(0, 10, (seeds, 6), generator=g)) for _ in range(steps)]


def small_stream(**more): return stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=32, passes=1, batch_size=16, **more)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_learner_is_a_plain_loop(name):
    cohort, size = cohort_of(name, optimizer="sgd", shape=(1, 16, 16)), (1, 16, 16) # Adam would blow up roundings of gradients that are 0
    nets = [cohort.module(k) for k in range(len(cohort))]
    anchors = copy.deepcopy(nets)
    norms = cohort.network.is_norm()
    optimizers = [torch.optim.SGD(n.parameters(), lr=float(lr)) for n, lr in zip(nets, cohort.lr)]
    for x, y in batches(shape=size):
        loss, _ = cohort.step(x, y)
        for k, (net, start, opt) in enumerate(zip(nets, anchors, optimizers)):
            s, where = int(cohort.row[k]), 0
            net.train()
            plain = F.cross_entropy(net(x[s]), y[s])
            assert abs(plain.item() - loss[k].item()) < 1e-9
            penalty = 0
            for p, a in zip(net.parameters(), start.parameters()):
                if not norms[where]: penalty = penalty + (p - a.detach()).square().sum() / 2
                where += p.numel()
            opt.zero_grad()
            (plain + float(cohort.hyper["strength"][k]) * penalty).backward()
            opt.step()
    for k, net in enumerate(nets):
        row = torch.cat([p.detach().flatten() for p in net.parameters()])
        assert torch.allclose(row, cohort.theta[k], rtol=0, atol=1e-8)
        for name, b in net.named_buffers(): assert torch.allclose(b, cohort.network.state[name][k])
        x = batches(1, 1, size)[0][0][0]
        torch.testing.assert_close(net.eval()(x), cohort.network.part([k]).forward(cohort.network.views(cohort.theta[[k]]), x[None])[0][0])


@pytest.mark.parametrize("name, method", [*((n, "l2_init") for n in SMALL), ("group", "shrink_perturb"), ("group", "ewc"), ("group", "dash"), ("group", "redo")])
def test_as_many_learners_at_a_time_as_there_is_memory_for(name, method, monkeypatch):
    "Seeds overlap in the parts."
    whole, few = cohort_of(name, method, shape=(1, 28, 28)), cohort_of(name, method, shape=(1, 28, 28))
    probes, sizes, own = dict(progress=False, fresh=1, forgetting=True, plasticity=2, readiness=2, grama=True, kernel=3), [], Cohort.between_tasks
    monkeypatch.setattr(Cohort, "between_tasks", lambda self, *tasks: (sizes.append(len(self)), own(self, *tasks)))
    expected = train(whole, small_stream(), **probes)
    assert engines.engine(few).at_a_time(16) >= len(few)
    monkeypatch.setattr(engines, "HELD", 3 * few.network.step_memory(few.theta[:2], 16))
    steps = engines.engine(few)
    assert steps.at_a_time(16) == 3 < len(few) and max(len(p.cohort) for p in steps.in_parts(3)) < 4
    before = {n: t.clone() for n, t in few.tensors().items()}
    engines.engine(few).at_a_time(16)
    assert all(torch.equal(t, before[n]) for n, t in few.tensors().items()) # looking changes nothing
    pd.testing.assert_frame_equal(train(few, small_stream(), **probes), expected, rtol=1e-5, atol=1e-5)
    assert few.steps == whole.steps and {*sizes[:2]} == {len(whole)} and max(sizes[2:]) < 4
    for n, t in few.tensors().items(): torch.testing.assert_close(t, whole.tensors()[n], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_probes_look_at_as_many_examples_as_there_is_memory_for(name, monkeypatch):
    cohort, x, y = cohort_of(name, "plain"), *(torch.cat(b, 1) for b in zip(*batches()))
    for b in batches(): cohort.step(*b)
    probes = Probes(readiness=2, grama=True, kernel=3)
    at_once, accuracy = cohort.probe(x, y, probes), cohort.accuracy(x, y)
    monkeypatch.setattr(engines, "HELD", 5 * cohort.network.example_memory(cohort.theta))
    most, own = [], type(cohort.network)._called
    def called(self, p, b, x):
        most.append(len(x))
        return own(self, p, b, x)
    monkeypatch.setattr(type(cohort.network), "_called", called)
    found = cohort.probe(x, y, probes)
    assert max(most) == 5 and x.shape[1] == 24 # of one learner at a time: vmap shows a single one's
    for n in at_once: torch.testing.assert_close(found[n], at_once[n], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(cohort.accuracy(x, y), accuracy)


def test_memory_of_a_step_is_that_of_its_passes():
    shape, taken = (1, 28, 28), {}
    for batch in (16, 64): # what grows with the batch is activations
        cohort = cohort_of("group", shape=shape, dtype=torch.float32)
        taken[batch] = cohort.network.step_memory(cohort.theta[:2], batch)
    assert 3.5 < taken[64] / taken[16] < 4.1
    wide = Cohort(grid("plain", [0, 1], [1e-3]), (1, 4, 4), 10, "plain", "sgd", "module", factory=lambda s, c: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 4096), nn.Linear(4096, c)))
    p = wide.network.size * 4
    assert 2 * p < wide.network.step_memory(wide.theta, 1) < 5 * p # weights are held, and gradients come


def test_an_mlp_as_a_module_is_the_package_s_own():
    def mlp(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, classes))
    learners = grid("l2_init", [0, 1], [1e-3], strength=[1e-2, 1.])
    own = Cohort(learners, (1, 8, 8), 10, "l2_init", "adam", "mlp", dtype=torch.float64, hidden=[12], layer_norm=True)
    other = Cohort(learners, (1, 8, 8), 10, "l2_init", "adam", "module", dtype=torch.float64, factory=mlp)
    rows = [torch.cat([p.detach().flatten() for p in own.module(k).parameters()]) for k in range(len(own))]
    other.theta.copy_(torch.stack(rows))
    other.theta0.copy_(other.theta)
    for x, y in batches():
        for a, b in zip(own.step(x, y), other.step(x, y)): torch.testing.assert_close(a, b, check_dtype=False)
    after = [torch.cat([p.detach().flatten() for p in own.module(k).parameters()]) for k in range(len(own))]
    assert torch.allclose(torch.stack(after), other.theta, rtol=0, atol=1e-10)
    mine, its = (c.probe(*batches()[0], Probes(readiness=2, grama=True, kernel=3)) for c in (own, other))
    assert mine.keys() == its.keys() and {"grama_share", "kernel_rank", "readiness"} <= mine.keys()
    for name in mine: torch.testing.assert_close(mine[name], its[name], rtol=1e-6, atol=1e-6) # ranks are as exact as singular values


# Methods that look at layers or units, or act at boundaries; normal noise on a flat tensor falls otherwise where weights lie otherwise.
ALL = [("weight_clipping", dict(bound=.9)), ("weight_clipping", dict(bound=.9, last="free")), ("parseval", dict(strength=.01)), ("spectral", dict(strength=.1)),
       ("normalize_and_project", {}), ("full_reset", {}), ("head_reset", {}), ("soft_reset", dict(share=.2)), ("fire", {}), ("dash", dict(mix=.3, floor=.2)), ("adam_rel", {}),
       ("ewc", dict(importance=10.)), ("upgd", dict(noise=0., scope="local")), ("shrink_perturb_at_boundaries", dict(shrink=.4, noise=0.)), ("redo", dict(period=7, threshold=.5)),
       ("redo", dict(period=6, threshold=.5, judged_on="next_test")), ("continual_backprop", dict(replacement_rate=.02, maturity=5)), ("regrama", dict(period=7, threshold=.5)),
       ("cpr", dict(period=7, replacement_rate=.5)), ("snr", dict(percentile=.5, update_every=1, lowest=16, highest=48))]
OWN = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[3], kernels=[5], hidden=[8]), normed=dict(hidden=[12], layer_norm=True))


def in_torch(net, flat): return torch.cat([w.view(flat).flatten(1) for w in net.weights], 1)


def own_and_module(method, hyper, name, seeds=(1, 2)):
    "A cohort of the package's network, and one of the same network as a module, from the same weights and with the same draws."
    learners = grid(method, [*seeds], [1e-2], **{n: [v] for n, v in hyper.items()})
    make = lambda network, **options: Cohort(learners, (1, 28, 28), 10, method, "adam", network, dtype=torch.float64, **options)
    own = make(name.replace("normed", "mlp"), **OWN[name])
    first = own.network.draw("init", torch.tensor([0]))[0]
    other = make("module", factory=lambda shape, classes: own.network.module(first))
    other.network.draw = lambda *args: in_torch(own.network, own.network.draw(*args))
    for t in (other.theta, other.theta0): t.copy_(in_torch(own.network, own.theta0))
    other._connect() # what parts keep of the start
    return own, other


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("method, hyper", [pytest.param(*c, id=" ".join(map(str, c))) for c in ALL])
def test_every_method_does_to_a_module_what_it_does_to_the_package_s_own(method, hyper, name):
    if method == "normalize_and_project" and name != "normed": pytest.skip("wants layer norm")
    own, other = own_and_module(method, hyper, name)
    s = stream("random_label_mnist", dataset="mnist5k", tasks=3, examples=48, passes=2)
    for c in (own, other): train(c, s, progress=False, engines=())
    assert torch.allclose(in_torch(own.network, own.theta), other.theta, rtol=0, atol=1e-7), (in_torch(own.network, own.theta) - other.theta).abs().max()
    plain = own_and_module("plain", {}, name)[0]
    train(plain, s, progress=False, engines=())
    assert plain.theta.shape != own.theta.shape or not torch.allclose(own.theta, plain.theta, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ("redo", "continual_backprop", "cpr", "regrama", "head_reset", "parseval"))
@pytest.mark.parametrize("name", ("group", "batch", "in groups"))
def test_resets_in_a_convolutional_network_are_those_of_each_learner_alone(method, name):
    if name == "in groups" and method == "head_reset": pytest.skip("is not for units")
    hyper = {n: v[:1] for n, v in hyper_of(method).items()}
    if "threshold" in hyper: hyper["threshold"] = [1.] # behind a norm, hardly a unit is far below the mean
    def new(seeds): return Cohort(grid(method, seeds, [1e-2], **hyper), (1, 28, 28), 10, method, "sgd", dtype=torch.float64, **CONVOLUTIONAL[name])
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=3)
    whole, alone, plain = new([0, 1]), new([1]), Cohort(grid("plain", [1], [1e-2]), (1, 28, 28), 10, "plain", "sgd", dtype=torch.float64, **CONVOLUTIONAL[name])
    for c in (whole, alone, plain): train(c, s, progress=False)
    assert torch.allclose(whole.theta[1], alone.theta[0], rtol=0, atol=1e-8)
    for n, t in whole.network.state.items(): torch.testing.assert_close(t[1], alone.network.state[n][0])
    assert not torch.allclose(alone.theta, plain.theta, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", HYPER)
@pytest.mark.parametrize("name", ["batch", "dropout"])
def test_a_learner_does_with_others_what_it_does_alone(name, method):
    whole, alone = cohort_of(name, method), cohort_of(name, method, seeds=[1])
    s = small_stream()
    own = (whole.learners.seed == 1).to_numpy().nonzero()[0]
    pieces = cohort_of(name, method).split(3)
    for x, y in batches():
        whole.step(x, y)
        alone.step(x[1:], y[1:])
        for p in pieces: p.step(x[p.seeds], y[p.seeds])
    split = torch.cat([p.theta for p in pieces])
    assert torch.allclose(whole.theta[own], alone.theta, rtol=0, atol=1e-9)
    assert torch.allclose(whole.theta, split, rtol=0, atol=1e-9)
    for n, t in whole.network.state.items(): torch.testing.assert_close(t[own], alone.network.state[n])
    assert not torch.equal(whole.theta[0], whole.theta[-1])


@pytest.mark.parametrize("name", ["batch", "dropout"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(name, tmp_path, monkeypatch):
    s, place = small_stream(), tmp_path / "checkpoint.pt"
    new = lambda: cohort_of(name, "ewc", dtype=torch.float32, shape=(1, 28, 28))
    probes = dict(progress=False, fresh=1, forgetting=True, grama=True, kernel=3)
    expected = train(new(), s, **probes)
    class Killed(Exception): pass
    first, c = s.task, new()
    def until(t, *args):
        if t == 1 and place.exists(): raise Killed
        return first(t, *args)
    learned = []
    def between(ended, following, own=c.between_tasks):
        own(ended, following)
        learned.append(ended.index)
    c.between_tasks = between
    import l2init.training as training
    def save(*args, own=training.save_checkpoint):
        own(*args)
        raise Killed
    with monkeypatch.context() as m:
        m.setattr(training, "save_checkpoint", save)
        with pytest.raises(Killed): train(c, s, checkpoint=place, every=0, **probes)
    assert learned == [0]
    pd.testing.assert_frame_equal(train(new(), s, checkpoint=place, **probes), expected)


def test_squares_are_those_of_single_examples():
    from l2init.regularizers import squared_gradients
    cohort = cohort_of("batch", "plain")
    for x, y in batches(): cohort.step(x, y)
    x, y = (cohort.per_learner(t) for t in batches()[0])
    found = squared_gradients(cohort.network, cohort.theta, x, y)
    for k in range(len(cohort)):
        net, total = cohort.module(k).eval(), 0
        for i in range(x.shape[1]):
            g = torch.autograd.grad(F.cross_entropy(net(x[k, i:i + 1]), y[k, i:i + 1]), list(net.parameters()))
            total = total + torch.cat([v.flatten() for v in g]).square()
        torch.testing.assert_close(found[k], total)


def test_what_probes_see():
    cohort, x = cohort_of("group", "plain"), batches()[0][0]
    logits, features, units = cohort.network.activations(cohort.params, cohort.per_learner(x))
    net, seen = cohort.module(0), []
    for m in net.modules():
        if isinstance(m, nn.ReLU): m.register_forward_hook(lambda m, args, out: seen.append(out.detach().clone()))
    torch.testing.assert_close(net(x[0]), logits[0])
    assert len(seen) == len(units) == 17
    for a, b in zip(seen, units): torch.testing.assert_close(a.abs().mean((2, 3)), b[0])
    torch.testing.assert_close(net[:-1](x[0]), features[0])


class ByFunctions(nn.Module):
    def __init__(self): super().__init__(); self.conv, self.hidden, self.out = nn.Conv2d(1, 4, 3), nn.Linear(36, 12), nn.Linear(12, 10)
    def forward(self, x): return self.out(F.relu(self.hidden(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))))


class Mixed(ByFunctions):
    def __init__(self): super().__init__(); self.act = nn.ReLU()
    def forward(self, x): return self.out(self.act(self.hidden(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))))


class NotUnderstood(ByFunctions):
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.out(F.relu(self.hidden(x)) + F.relu(self.hidden(-x)))


def probed(make): return Cohort(grid("plain", [0, 1], [1e-2]), (1, 8, 8), 10, "plain", "sgd", "module", factory=lambda *_: make()).probe(*(t.float() if t.is_floating_point() else t for t in batches()[0]))


def test_units_that_are_not_understood_are_not_counted():
    found = probed(NotUnderstood)
    assert found["dead_share"].isnan().all() and found["dormant_share"].isnan().all() and found["srank"].isfinite().all()


class NormedWeights(ByFunctions):
    def __init__(self): super().__init__(); self.hidden, self.act = nn.utils.parametrizations.weight_norm(self.hidden), nn.ReLU()
    def forward(self, x): return 10 * torch.tanh(self.out(self.act(self.hidden(F.max_pool2d(self.act(self.conv(x)), 2).flatten(1)))) / 10)


def test_layers_are_counted_where_units_are_not_understood():
    assert probed(NormedWeights)["dead_share"].isfinite().all()


def test_a_name_in_skip_is_looked_at_at_once():
    with pytest.raises(InputError, match="'hiden'. Did you mean 'hidden'"): network("module", (1, 8, 8), 10, factory=lambda *_: Mixed(), skip=["hiden"])


@pytest.mark.parametrize("skip, said", ((["hidden"], ""), (["hiden"], "Did you mean 'hidden'"), ("hidden", "list")))
def test_units_of_a_network_can_be_left_out(skip, said):
    make = lambda: Cohort(grid("redo", [0, 1], [1e-2], period=[1], threshold=[1e9]), (1, 8, 8), 10, "redo", "sgd", "module", factory=lambda *_: Mixed(), skip=skip)
    if said:
        with pytest.raises(InputError, match=said): make()
        return
    cohort = make()
    before = {m: {n: t.clone() for n, t in of.items()} for m, of in cohort.params.items()}
    cohort.step(*(t.float() if t.is_floating_point() else t for t in batches()[0]))
    renewed = {m: not torch.allclose(before[m]["weight"], cohort.params[m]["weight"], rtol=0, atol=.05) for m in before}
    assert renewed == dict(conv=True, hidden=True, out=False) # `hidden` listens to the channels; it is not renewed itself
    assert cohort.params["out"]["weight"].any() and not cohort.params["hidden"]["weight"].any()


class Branches(nn.Module):
    def __init__(self): super().__init__(); self.once, self.twice, self.out, self.other = nn.Linear(64, 12), nn.Linear(64, 8), nn.Linear(12, 10), nn.Linear(8, 10)
    def forward(self, x):
        x = x.flatten(1)
        return self.out(F.relu(self.once(x))) + self.other(F.relu(self.twice(x)) + F.relu(self.twice(-x)))


def test_a_class_names_units_that_are_left_out():
    class Own(ModuleArchitecture):
        left_out = ["twice"]
        def module(self, shape, classes): return Branches()
    assert [g.name for g in Own().build((1, 8, 8), 10).hidden_layers()] == ["once"]
    Own.left_out = []
    with pytest.raises(InputError, match=r"Leave them out with skip=\['twice'\].*a class names them in left_out"): Own().build((1, 8, 8), 10).hidden_layers()


def test_units_behind_functions_are_seen_as_those_behind_layers():
    by_layers = lambda shape, classes: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 10))
    factories = dict(functions=lambda *_: ByFunctions(), mixed=lambda *_: Mixed(), layers=by_layers)
    cohorts = {n: Cohort(grid("plain", [0, 1], [1e-2]), (1, 8, 8), 10, "plain", "sgd", "module", dtype=torch.float64, factory=f) for n, f in factories.items()}
    x, y = batches()[0]
    for n, c in cohorts.items():
        c.theta.copy_(cohorts["functions"].theta)
        first = c.params["0" if n == "layers" else "conv"]
        first["bias"][0, :2] = -9. # dead channels of the first learner
    mine, mixed, its = (c.probe(x, y, portion=1) for c in cohorts.values())
    assert mine["dead_share"][0] >= 2 / 16 and mine.keys() == its.keys() == mixed.keys()
    for n in mine:
        torch.testing.assert_close(mine[n], its[n])
        torch.testing.assert_close(mixed[n], its[n])


@pytest.mark.parametrize("name", SMALL)
def test_newer_probes_are_those_of_plain_modules(name):
    cohort, (x, y) = cohort_of(name, "plain"), batches()[0]
    for b in batches(): cohort.step(*b)
    found = cohort.probe(x, y, Probes(grama=True, kernel=3))
    for k in range(len(cohort)):
        net, own = cohort.module(k).eval(), x[cohort.row[k]]
        parameters = list(net.parameters())
        outputs = [[torch.autograd.grad(net(own[i:i + 1])[0, c], parameters) for i in range(3)] for c in range(10)]
        rows = torch.tensor([[torch.cat([g.flatten() for g in grads]).tolist() for grads in of] for of in outputs])
        assert found["kernel_rank"][k] == srank(torch.linalg.eigvalsh((rows @ rows.mT).sum(0).double()).flip(-1)[None])
        F.cross_entropy(net(own), y[cohort.row[k]]).backward()
        gradients, stuck = {n: p.grad[None] for n, p in net.named_parameters()}, []
        for group in units(net, own):
            size = torch.cat([p.view(gradients[f"{p.module}.weight"], group.units).flatten(2) for p in group.producers], 2).abs().mean(2)[0]
            stuck.append(size <= .01 * size.mean())
        assert found["grama_share"][k] == torch.cat(stuck).float().mean()


def test_a_measurement_changes_nothing():
    cohort = cohort_of("batch", "plain")
    cohort.step(*batches()[0])
    before = {n: t.clone() for n, t in cohort.tensors().items()}
    random = torch.random.get_rng_state()
    cohort.probe(*batches()[0], Probes(readiness=2, grama=True, kernel=3)), cohort.accuracy(*batches()[0])
    assert all(torch.equal(t, before[n]) for n, t in cohort.tensors().items())
    assert torch.equal(random, torch.random.get_rng_state())
    cohort.step(*batches()[1])
    cohort.start_anew()
    fresh = cohort_of("batch", "plain").tensors()
    assert all(torch.equal(t, fresh[n]) for n, t in cohort.tensors().items())


def test_dropout_is_keyed():
    cohort = cohort_of("dropout", "plain")
    x = cohort.per_learner(batches()[0][0])
    at = lambda step: cohort.network.learning(cohort.params, x, step)[0]
    assert torch.equal(at(1), at(1)) and not torch.equal(at(1), at(2))
    assert torch.equal(at(1)[0], at(1)[2]) == (int(cohort.learner_seeds[0]) == int(cohort.learner_seeds[2]))
    evaluated = cohort.network.forward(cohort.params, x)[0]
    torch.testing.assert_close(evaluated[0], cohort.module(0).eval()(x[0]))


class Functional(nn.Module):
    def __init__(self, drop): super().__init__(); self.a, self.b, self.drop = nn.Linear(64, 12), nn.Linear(12, 10), drop
    def forward(self, x): return self.b(self.drop(self.a(x.flatten(1)), self.training))


class Attends(nn.Module):
    "Four tokens of 16 numbers."
    def __init__(self, attention, **options): super().__init__(); self.attention, self.out, self.options = attention, nn.Linear(16, 10), options
    def forward(self, x):
        x = x.view(len(x), 4, 16)
        given = self.attention(x, x, x, **self.options) if isinstance(self.attention, nn.MultiheadAttention) else self.attention(x)
        return self.out((given[0] if isinstance(given, tuple) else given).mean(1))


class Heads(nn.Module):
    def __init__(self): super().__init__(); self.qkv = nn.Linear(16, 32)
    def forward(self, x):
        q, kv = self.qkv(x).split((16, 16), -1)
        q, (k, v) = q.unflatten(-1, (4, 4)).transpose(1, 2), kv.unflatten(-1, (2, 2, 4)).movedim(2, 0).transpose(2, 3)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=.3 if self.training else 0., is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)


DROPPING = { # name -> factory of no arguments
    "function": lambda: Functional(lambda z, training: F.dropout(z, .3, training)),
    "in place": lambda: Functional(lambda z, training: F.dropout(z, .3, training, inplace=True)),
    "layers": lambda: nn.Sequential(nn.Dropout(.3), nn.Flatten(), nn.Linear(64, 20), nn.Dropout(.3, inplace=True), nn.Linear(20, 10)),
    "channels": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Dropout2d(.3), nn.Flatten(), nn.Linear(216, 10)),
    "channels of sequences": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 6, 5), nn.Dropout1d(.3), nn.Flatten(), nn.Linear(360, 10)),
    "encoder": lambda: Attends(nn.TransformerEncoderLayer(16, 2, 24, dropout=.3, batch_first=True)),
    "attention": lambda: Attends(nn.MultiheadAttention(16, 2, dropout=.3, batch_first=True)),
    "attention without weights": lambda: Attends(nn.MultiheadAttention(16, 2, dropout=.3, batch_first=True), need_weights=False),
    "attention by a function": lambda: Attends(Heads()),
    "stochastic depth": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), StochasticDepth(.3, "row"), nn.Linear(12, 10), StochasticDepth(.3, "batch")),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_of_every_kind_is_each_learner_s_own(name):
    new = lambda seeds: Cohort(grid("plain", seeds, [1e-2]), (1, 8, 8), 10, "plain", "sgd", "module", dtype=torch.float64, factory=lambda shape, classes: DROPPING[name]())
    whole, alone = new([0, 1, 2]), new([1])
    before, functions = torch.random.get_rng_state(), (F.dropout, F.dropout2d, F.scaled_dot_product_attention)
    for x, y in batches(3):
        whole.step(x, y)
        alone.step(x[1:2], y[1:2])
    assert torch.allclose(whole.theta[1], alone.theta[0], rtol=0, atol=1e-12)
    assert torch.equal(before, torch.random.get_rng_state()) and functions == (F.dropout, F.dropout2d, F.scaled_dot_product_attention)
    x = whole.per_learner(batches(3)[0][0])
    at = lambda step: whole.network.learning(whole.params, x, step)[0]
    assert torch.equal(at(1), at(1)) and not torch.equal(at(1), at(2))
    torch.testing.assert_close(whole.network.forward(whole.params, x)[0][0], whole.module(0).eval()(x[0]))


@pytest.mark.parametrize("options", (dict(), dict(is_causal=True), dict(attn_mask=torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > .3), dict(scale=.1), dict(enable_gqa=True)), ids=str)
def test_attention_drops_its_weights(options):
    g = torch.Generator().manual_seed(0)
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = (torch.randn(3, h, n, 6, generator=g, dtype=torch.float64) for h, n in ((4, 5), (heads, 7), (heads, 7)))
    weights = lambda f, p: f(q, k, torch.eye(7, dtype=torch.float64).expand(3, heads, 7, 7), dropout_p=p, **options)
    full = weights(F.scaled_dot_product_attention, 0.)
    def keyed(*args, **options):
        with KeyedDropout(torch.tensor(3), 0).instead(): return F.scaled_dot_product_attention(*args, **options)
    dropped = weights(keyed, .25)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, full / .75, 0.))
    assert .1 < 1 - kept[full > 0].double().mean() < .4
    torch.testing.assert_close(keyed(q, k, v, dropout_p=.25, **options), dropped @ v.repeat_interleave(4 // heads, 1))


@pytest.mark.parametrize("f, dims, size", ((F.dropout1d, 2, (4, 5)), (F.dropout1d, 3, (4, 5, 6)), (F.dropout2d, 3, (4, 5, 6)), (F.dropout2d, 4, (4, 5, 3, 3)), (F.dropout3d, 4, (4, 5, 3, 3)), (F.dropout3d, 5, (4, 5, 3, 3, 2))))
def test_what_falls_together_is_what_falls_together_in_pytorch(f, dims, size):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        its = torch.stack([f(torch.ones(size), .5) for _ in range(40)])
    own = KeyedDropout(torch.tensor(0), 0)
    with own.instead(): mine = torch.stack([getattr(F, f.__name__)(torch.ones(size), .5) for _ in range(40)])
    def together(draws): return (draws.flatten(1)[:, :, None] == draws.flatten(1)[:, None]).all(0) # in all draws alike
    assert torch.equal(together(its), together(mine)) and {*mine.unique().tolist()} == {0., 2.}


def test_all_may_be_dropped():
    x = torch.ones(4, requires_grad=True)
    with KeyedDropout(torch.tensor(0), 0).instead(): F.dropout(x, 1.).sum().backward()
    assert torch.equal(x.grad, torch.zeros(4))


class Positions(nn.Module):
    "Channels by a table of positions, which has as many rows whatever the batch."
    def __init__(self): super().__init__(); self.table, self.a, self.b, self.out = nn.Buffer(torch.randn(7, 2)), nn.Linear(2, 5), nn.Linear(5, 1), nn.Linear(7, 10)
    def forward(self, x): return self.out(x.flatten(1)[:, :7] * self.b(F.relu(self.a(self.table))).view(7))


def test_units_that_all_examples_share_are_probed():
    found = probed(Positions)
    table = Positions()
    assert found["dead_share"].isfinite().all() and [g.units for g in units(table, torch.randn(4, 1, 8, 8))] == [5]


@pytest.mark.parametrize("fresh", (0, 1))
def test_boundaries_of_parts_come_at_the_steps_of_the_whole(fresh, monkeypatch):
    "Also after a fresh network has been measured with them."
    def trained(at_once):
        cohort = Cohort(grid("redo", [0, 1], [1e-2], period=[4], threshold=[.5], judged_on=["next_test"]), (1, 28, 28), 10, "redo", "adam", "resnet18", width=2, dtype=torch.float64)
        with monkeypatch.context() as m:
            if at_once: m.setattr(engines, "HELD", at_once * cohort.network.step_memory(cohort.theta[:2], 16))
            train(cohort, stream("random_label_mnist", dataset="mnist5k", tasks=3, examples=32, passes=1, batch_size=16), progress=False, fresh=fresh)
        return cohort.theta
    torch.testing.assert_close(trained(1), trained(None), rtol=0, atol=1e-9)


def test_looking_at_units_costs_no_step_anything():
    cohort = cohort_of("group", "plain")
    cohort.probe(*batches()[0], Probes(grama=True))
    assert cohort.network.found is None and {*cohort.network.learning(cohort.params, cohort.per_learner(batches()[0][0]), 0)[1]} == {"x", "logits", "leaves"}


def test_examples_take_as_much_memory_in_any_precision():
    full, low = (Cohort(grid("plain", [0], [.1]), (1, 8, 8), 10, "plain", "sgd", precision=p, **NETWORKS["vit"]) for p in ("full", "bfloat16"))
    assert full.network.example_memory(full.theta) == low.network.example_memory(low.theta)


@pytest.mark.parametrize("mode", ("row", "batch"))
def test_stochastic_depth_leaves_out_rows_or_the_batch(mode):
    layer = StochasticDepth(.5, mode)
    with KeyedDropout(torch.tensor(0), 0).instead(): draws = torch.stack([layer(torch.ones(6, 3)) for _ in range(20)])
    assert (draws == draws[:, :, :1]).all() and {*draws.unique().tolist()} == {0., 2.}
    assert (draws == draws[:, :1]).all() == (mode == "batch")


def test_what_drops_in_place_changes_what_it_is_given():
    x = torch.ones(40)
    with KeyedDropout(torch.tensor(0), 0).instead(): F.dropout(x, .5, inplace=True)
    assert {*x.tolist()} == {0., 2.}


@pytest.mark.parametrize("name", ("group", "vit"))
def test_a_step_in_bfloat16_is_a_plain_loop_over_copies(name):
    "Up to roundings of bfloat16, for products of a batch of learners may add in another order."
    options = NETWORKS[name] | (dict(width=8) if name == "group" else {})
    shape = (1, 32, 32) if name == "group" else (1, 8, 8)
    c = Cohort(grid("plain", [0, 1], [1e-3]), shape, 10, "plain", "sgd", precision="bfloat16", **options)
    models, (x, y) = [c.module(k) for k in range(2)], batches(shape=shape)[0]
    c.step(x.float(), y)
    assert c.theta.dtype == c.grad.dtype == torch.float32
    for k, m in enumerate(models):
        own = dict(m.named_parameters())
        logits = torch.func.functional_call(m, {n: p.bfloat16() for n, p in own.items()}, (x[k].bfloat16(),)).float()
        g = torch.cat([t.flatten() for t in torch.autograd.grad(F.cross_entropy(logits, y[k]), list(own.values()))])
        assert (g - c.grad[k]).norm() < .06 * g.norm()
    with pytest.raises(InputError, match="torch.bfloat16 may be why"):
        Cohort(grid("plain", [0], [1e-3]), (1, 8, 8), 10, "plain", "sgd", precision="bfloat16", **NETWORKS["batch"])


def test_what_cannot_be_is_named():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 10)
        def forward(self, x): return self.a(x.flatten(1)) * torch.rand(10)
    class DrawsAlways(Draws):
        def forward(self, x): return F.dropout(self.a(x.flatten(1)), .5)
    class Frozen(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self[1].bias.requires_grad_(False)
    wrong = lambda make: network("module", (1, 8, 8), 10, factory=lambda shape, classes: make())
    with pytest.raises(InputError, match=r"it draws random numbers by itself\. Dropout as PyTorch has it"): wrong(Draws)
    with pytest.raises(InputError, match=r"'0' \(Draws\) draws random numbers by itself\. "): wrong(lambda: nn.Sequential(Draws(), nn.ReLU()))
    with pytest.raises(InputError, match="it draws random numbers by itself in eval mode, too, where dropout has to be off"): wrong(DrawsAlways)
    with pytest.raises(InputError, match=r"in '1' \(GRU\): .*knows no recurrent layers"): wrong(lambda: nn.Sequential(nn.Flatten(), nn.GRU(64, 10), Taken()))
    with pytest.raises(InputError, match="1.bias is frozen"): wrong(Frozen)
    with pytest.raises(InputError, match="The batch norm '2' has no running statistics"):
        wrong(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False)))
    with pytest.raises(InputError, match=r"gives \(2, 64\)"): wrong(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64)))
    with pytest.raises(InputError, match="cannot take inputs"): wrong(lambda: nn.Linear(3, 10))
    with pytest.raises(InputError, match="no multiple of heads"): network("vit_small", (1, 8, 8), 10, heads=3)
    with pytest.raises(InputError, match="patches of 3"): network("vit_small", (1, 8, 8), 10, patch=3)
    with pytest.raises(InputError, match="layer_norm"): network("resnet18", (1, 8, 8), 10, layer_norm=True)


class Taken(nn.Module):
    def forward(self, x): return x[0]


def linear(give=lambda logits: logits, make=lambda: nn.Linear(64, 10)):
    class Gives(nn.Module):
        def __init__(self): super().__init__(); self.a = make()
        def forward(self, x): return give(self.a(x.flatten(1)))
    return Gives


class Named(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(64, 10)
    def forward(self, x, *, task): return self.a(x.flatten(1))


def drawn_by_numpy():
    layer = nn.Linear(64, 10)
    layer.weight.data = torch.tensor(np.random.randn(10, 64) * .1, dtype=torch.float32)
    return layer


WRONG = { # name -> factory of no arguments, what is said
    "nothing": (lambda: None, "makes None, and not an nn.Module"),
    "a class": (lambda: nn.Linear, "and not an nn.Module"),
    "a function": (lambda: F.relu, "and not an nn.Module"),
    "a dictionary": (linear(lambda logits: dict(logits=logits)), r"gives a dict for 2 inputs, but \(2, 10\)"),
    "two outputs": (linear(lambda logits: (logits, logits)), r"gives a tuple for 2 inputs, but \(2, 10\)"),
    "a keyword": (Named, "cannot take inputs .*required keyword-only argument: 'task'"),
    "a lazy layer": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "1.weight has no shape yet"),
    "half precision": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(), "0?1?.weight is torch.float16"),
    "other random numbers": (linear(make=drawn_by_numpy), "different weights at the same seed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_factory_is_named(name):
    make, said = WRONG[name]
    with pytest.raises(InputError, match=said): network("module", (1, 8, 8), 10, factory=lambda shape, classes: make())


def without_linear(shape, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("method", ("plain", "l2_init", "redo"))
def test_a_network_without_a_linear_layer(method):
    hyper = dict(l2_init=dict(strength=[.1]), redo=dict(period=[2], threshold=[.1])).get(method, {})
    cohort = Cohort(grid(method, [0, 1], [1e-2], **hyper), (1, 8, 8), 3, method, "adam", "module", factory=without_linear)
    for _ in range(3): cohort.step(torch.randn(2, 16, 1, 8, 8), torch.randint(3, (2, 16)))
    found = cohort.probe(torch.randn(2, 16, 1, 8, 8), torch.randint(3, (2, 16)))
    assert cohort.theta.isfinite().all() and found["dead_share"].isfinite().all() and "srank" not in found


@pytest.mark.parametrize("method", ("redo", "continual_backprop", "snr", "cpr", "regrama"))
@pytest.mark.parametrize("name, options", (("module", dict(factory=lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))), ("mlp", dict(hidden=[]))))
def test_a_method_for_units_wants_some_at_once(method, name, options):
    learners = grid(method, [0], [1e-2], **{n: v[:1] for n, v in hyper_of(method).items()})
    with pytest.raises(InputError, match="units.*, but the network has none"): Cohort(learners, (1, 8, 8), 3, method, "adam", name, **options)


class DropsTwice(nn.Module): # with one layer, as many do
    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(.5), nn.Linear(40, 5)
    def forward(self, x):
        a, b = self.drop(torch.ones_like(x)), self.drop(torch.ones_like(x))
        return self.head((a - b).abs())


def test_dropout_that_is_called_twice_has_two_masks():
    cohort = Cohort(grid("plain", [0, 1], [.1]), (40,), 5, "plain", "sgd", "module", factory=lambda shape, classes: DropsTwice())
    before = cohort.theta.clone()
    cohort.step(torch.randn(2, 8, 40), torch.randint(0, 5, (2, 8)))
    changed = (cohort.theta - before).view(2, -1)[:, :200] # the weights of the head
    assert (changed != 0).any(1).all()


def test_a_factory_that_gives_one_module_to_all_is_refused():
    one = nn.Linear(4, 3)
    with pytest.raises(InputError, match="same module each time"):
        Cohort(grid("plain", [0, 1], [.1]), (4,), 3, "plain", "sgd", "module", factory=lambda shape, classes: one)


class Words(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed, self.first, self.head = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 6), nn.Linear(6, classes)
    def forward(self, ids): return self.head(F.relu(self.first(self.embed(ids.long().abs()).mean(1))))


@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_the_padding_row_of_an_embedding_stays_for_every_learner(optimizer):
    cohort = Cohort(grid("plain", [0, 1], [1e-2]), (5,), 4, "plain", optimizer, "module", factory=lambda shape, classes: Words(classes), dtype=torch.float64)
    nets, g = [cohort.module(k) for k in range(2)], torch.Generator().manual_seed(0)
    opts = [dict(sgd=torch.optim.SGD, adam=torch.optim.Adam)[optimizer](n.parameters(), lr=1e-2) for n in nets]
    for _ in range(20):
        x, y = torch.randint(0, 4, (2, 6, 5), generator=g).double(), torch.randint(4, (2, 6), generator=g)
        cohort.step(x, y)
        for k, (net, opt) in enumerate(zip(nets, opts)):
            opt.zero_grad()
            F.cross_entropy(net(x[k]), y[k]).backward()
            opt.step()
    rows = cohort.network.padding[0]
    assert rows == slice(0, 8) and not any(t[:, rows].any() for t in cohort.descent.state.values() if t.shape == cohort.theta.shape)
    for k, net in enumerate(nets):
        assert not cohort.module(k).embed.weight[0].any()
        for a, b in zip(cohort.module(k).parameters(), net.parameters()): assert torch.allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ("l2", "shrink_perturb", "redo", "continual_backprop", "wasserstein", "full_reset", "upgd"))
def test_no_method_changes_a_padding_row(method):
    cohort = Cohort(grid(method, [0, 1], [1e-2], **hyper_of(method)), (5,), 4, method, "sgd", "module", factory=lambda shape, classes: Words(classes))
    before = cohort.theta.clone()
    for i in range(12):
        cohort.step(torch.randint(0, 4, (2, 6, 5)).float(), torch.randint(4, (2, 6)))
        if i == 6: cohort.between_tasks(None, None)
    assert all(not cohort.module(k).embed.weight[0].any() for k in range(2)) and not torch.equal(cohort.theta, before)


def test_fan_in_of_linear_layers(): # also where the weight is made of others
    made = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    assert [w.fan_in for m in (nn.Linear(6, 8), made) for w in module_weights(m) if w.kind == "bias"] == [6, 6]
    assert module_weights(nn.Linear(6, 8))[0].fan_in == 6
