"""Methods in a loop of one's own: equal to a cohort of one, on networks of several families, with the optimizers and tools that people use."""
import copy
import io
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import hyper_of
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchvision.models import ResNet, resnet18
from torchvision.models.resnet import Bottleneck
from torchvision.models.vision_transformer import VisionTransformer

from l2init.cohorts import Cohort
from l2init.drop_in import ContinualBackprop, OwnTask, ReDo, ShrinkPerturb, drop_in, measure
from l2init.internals.core import InputError
from l2init.methods import grid, methods
from l2init.metrics import srank
from l2init.regularizers import L2Init
from l2init.training import Probes
from l2init.units import WITHOUT_END, by_hand, reading, tensors_of, units

NETWORKS = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[4], kernels=[3], hidden=[8]), normed=dict(hidden=[12, 9], layer_norm=True))
HYPER = dict(redo=dict(period=20, threshold=.4), continual_backprop=dict(replacement_rate=.02, maturity=10), shrink_perturb=dict(shrink=1e-3, noise=1e-3),
             l2_init=dict(strength=.1), l2_init_resampled=dict(strength=.1), l2=dict(strength=.1), regrama=dict(period=7, threshold=.5))


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


BOUNDARIES = dict(full_reset={}, head_reset={}, shrink_perturb_at_boundaries=dict(shrink=.4, noise=.01), soft_reset=dict(share=.2), fire={}, dash=dict(mix=.3, floor=.2), adam_rel={},
                  ewc=dict(importance=10.), snr=dict(percentile=.5, update_every=1, lowest=16, highest=48), weight_clipping=dict(bound=.9), parseval=dict(strength=.01),
                  spectral=dict(strength=.1), normalize_and_project={}, upgd=dict(noise=.1, scope="local"))
OTHERS = dict(weight_clipping=[dict(bound=.9, last="free")], upgd=[dict(noise=.1)])


@pytest.mark.parametrize("method", BOUNDARIES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_equals_a_cohort_of_one_also_at_boundaries(method, name, optimizer):
    if not methods[method].suits(optimizer): pytest.skip("for another optimizer")
    if method == "normalize_and_project" and name != "normed": pytest.skip("wants layer norm")
    for hyper in (BOUNDARIES[method], *OTHERS.get(method, [])):
        make = lambda m, its: Cohort(grid(m, [5], [1e-2], **{n: [v] for n, v in its.items()}), (1, 8, 8), 3, m, optimizer, name.replace("normed", "mlp"), dtype=torch.float64, **NETWORKS[name])
        cohort, plain = make(method, hyper), make("plain", {})
        model = cohort.module(0)
        opt = dict(sgd=torch.optim.SGD, adam=torch.optim.Adam)[optimizer](model.parameters(), lr=1e-2)
        data = batches(200)
        handle = drop_in(method, model, opt, example=data[0][0], seed=5, **hyper)
        for i, (x, y) in enumerate(data):
            if i and i % 50 == 0:
                handle.task_ends(ended=data[i - 2:i], following=data[i:i + 5])
                given = [[(x[None], y) for x, y in some] for some in (data[i - 2:i], data[i:i + 5])]
                cohort.between_tasks(OwnTask(i // 50 - 1, "ended", given[0]), OwnTask(i // 50, "following", given[1]))
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            for c in (cohort, plain): c.step(x[None], y[None])
        mine = cohort.network.stack([model])
        assert torch.allclose(mine, cohort.theta, rtol=0, atol=1e-6), (mine - cohort.theta).abs().max()
        assert mine.shape != plain.theta.shape or not torch.allclose(mine, plain.theta, rtol=0, atol=1e-3)


@pytest.mark.parametrize("optimizer", (torch.optim.Adam, torch.optim.NAdam, torch.optim.Adagrad, torch.optim.RMSprop))
def test_an_optimizer_that_is_cleared_is_a_new_one(optimizer):
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    opt = optimizer(model.parameters(), lr=1e-2)
    handle = drop_in("full_reset", model, opt)
    data = [(x.flatten(1), y) for x, y in batches(20)]
    fit(model, opt, data)
    handle.task_ends()
    fresh = copy.deepcopy(model)
    handle.remove()
    assert torch.equal(fit(model, opt, data), fit(fresh, optimizer(fresh.parameters(), lr=1e-2), data))


@pytest.mark.parametrize("method", ("soft_reset", "ewc", "snr"))
def test_resumes_after_a_boundary(method):
    data, ends = batches(60), []
    for cut in (False, True):
        model, opt, handle = made(method=method)
        for i in range(0, 60, 20):
            if i: handle.task_ends(ended=data[i - 2:i])
            if cut and i == 40: # the second boundary was just passed
                kept = copy.deepcopy((model.state_dict(), opt.state_dict(), handle.state_dict()))
                model, opt, handle = made(seed=1, method=method)
                for it, state in zip((model, opt, handle), kept): it.load_state_dict(state)
            fit(model, opt, data[:i + 20], start=i)
        handle.task_ends(ended=data[-2:])
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_what_is_missing_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    odd, x = nn.Sequential(*model, nn.PReLU(dtype=torch.float64)), batches(1)[0][0]
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    with pytest.raises(InputError, match="output layer: give example="): drop_in("head_reset", model, opt)
    with pytest.raises(InputError, match="The output layer is not known: the last layer with weights, '4', is a PReLU"): drop_in("parseval", odd, torch.optim.SGD(odd.parameters(), lr=.1), example=x, strength=.1)
    with pytest.raises(InputError, match="for the optimizer adam, not for SGD"): drop_in("adam_rel", model, opt)
    with pytest.raises(InputError, match=r"task_ends\(ended=batches\)"): drop_in("ewc", model, opt, importance=1.).task_ends()
    with pytest.raises(InputError, match=r"task_ends\(following=batches\)"): drop_in("dash", model, opt).task_ends()
    with pytest.raises(InputError, match="test examples"): drop_in("redo", model, opt, example=x, period=2, threshold=0., judged_on="next_test").task_ends()
    model[3].requires_grad_(False)
    with pytest.raises(InputError, match="'3', is frozen"): drop_in("head_reset", model, torch.optim.SGD(model[1].parameters(), lr=.1), example=x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.up, self.down, self.last = nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(x + self.down(F.relu(self.up(x))))
        return self.last(x)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, 3)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    def forward(self, x): return self.head(self.body(self.embed(x)).mean(1))


def vgg():
    conv = lambda a, b: [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*conv(3, 8), nn.MaxPool2d(2), *conv(8, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))


def vit():
    model = VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    return model


class Own(nn.Module): # a linear layer whose weight stands the other way round
    def __init__(self, a, b):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(a, b) * .3), nn.Parameter(torch.zeros(b))
    def forward(self, x): return torch.addmm(self.bias, x, self.weight)


FAMILIES = dict(residual=(Residual, (12,)), vgg=(vgg, (3, 16, 16)), resnet18=(lambda: resnet18(num_classes=3), (3, 32, 32)), vit=(vit, (3, 16, 16)), encoder=(Encoder, (5, 12)),
                own=(lambda: nn.Sequential(Own(12, 8), nn.ReLU(), Own(8, 8), nn.ReLU(), Own(8, 3)), (12,)),
                resnext=(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, groups=4, width_per_group=4), (3, 32, 32)))


def killed(group, params):
    "Make a third of the units truly dead: nothing arrives at those that listen to them."
    dead = torch.arange(0, group.units, 3)
    for t in (*group.rows(params), *group.biases(params), *(t for t, _ in group.norms(params))): t[:, dead] = 0
    return dead


@pytest.mark.parametrize("family", FAMILIES)
def test_dead_units_are_renewed_and_the_function_stays(family):
    torch.manual_seed(0)
    make, shape = FAMILIES[family]
    model, x = make().double(), torch.randn(16, *shape, dtype=torch.float64)
    opt = torch.optim.AdamW(model.parameters(), lr=0., weight_decay=0.)
    F.cross_entropy(model(x), torch.randint(3, (16,))).backward()
    found = units(model, x)
    handle = ReDo(model, opt, units=found, period=2, threshold=0.)
    with torch.no_grad(): dead = [killed(g, tensors_of(model)) for g in found]
    for m in model.modules(): # so that training mode does not change what the norms know
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.momentum = 0.
    eval_ = lambda: copy.deepcopy(model).eval()(x).detach()
    model(x); opt.step(); before = eval_(); model(x); opt.step() # the second step is due
    assert torch.allclose(eval_(), before, rtol=0, atol=1e-9)
    with reading(model.eval(), found) as saved, torch.no_grad(): model(x)
    for g, d in zip(found, dead):
        alive = (g.activations(saved)[0, d] != 0).any(1)
        assert alive.float().mean() > .6 # a new unit can be silent on 16 examples by chance
        for moments in handle.stack.moments: # exactly these are forgotten
            for t in g.rows(moments): assert (t[:, d] == 0).all()
            hit = torch.zeros(g.units, dtype=torch.bool).index_fill(0, d, True)
            for t, span in zip(g.columns(moments), g.spans(moments), strict=True): assert (t[:, hit[span]] == 0).all()
    first = found.groups[-1].columns(handle.stack.moments[0])[0]
    kept = [u for u in range(found.groups[-1].units) if u % 3]
    assert (first[:, kept] != 0).any()


def in_groups(groups):
    "A convolution in two groups, or the same one of all channels, in which the others' weights are 0."
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Linear(96, 3)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head).double()
    if groups == 2: return model
    model[2] = nn.Conv2d(8, 6, 3).double()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].weight[:3, :4], model[2].weight[3:, 4:] = second.weight[:3], second.weight[3:]
        model[2].bias.copy_(second.bias)
    return model


@pytest.mark.parametrize("method, hyper", (("redo", dict(period=2, threshold=.9)), ("continual_backprop", dict(replacement_rate=.2, maturity=1)),
                                           ("cpr", dict(period=2, replacement_rate=.5))))
def test_a_convolution_in_groups_is_one_of_all_channels_with_zeros(method, hyper):
    ends = []
    for groups in (2, 1):
        model = in_groups(groups)
        opt = torch.optim.SGD(model.parameters(), lr=.05)
        if groups == 1: # nobody learns what is not there
            mask = (model[2].weight != 0).double()
            model[2].weight.register_hook(lambda g, mask=mask: g * mask)
        handle = drop_in(method, model, opt, units=units(model, torch.randn(4, 3, 8, 8).double(), skip=["2"]), seed=1, **hyper)
        g = torch.Generator().manual_seed(1)
        for _ in range(12):
            x, y = torch.randn(16, 3, 8, 8, generator=g).double(), torch.randint(3, (16,), generator=g)
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
        assert [len(u.consumers) for u in handle.stack.network.found] == [groups]
        w = model[2].weight.detach()
        ends.append([model[0].weight.detach(), torch.cat([w[:3, :4], w[3:, 4:]]) if groups == 1 else w, model[2].bias.detach(), model[5].weight.detach()])
    start = in_groups(2)
    assert (ends[0][0] - start[0].weight).abs().amax((1, 2, 3)).max() > .05 # units were renewed
    for a, b in zip(*ends): assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_groups_of_a_convolution_that_hears_two_layers():
    class Two(nn.Module): # channels 4 to 7 of 12 are the second layer's
        def __init__(self):
            super().__init__()
            self.a, self.b, self.both, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(12, 6, 3, groups=2), nn.Linear(96, 3)
        def forward(self, x): return self.head(self.both(torch.cat([self.a(x).relu(), self.b(x).relu()], 1)).relu().flatten(1))
    model = Two()
    found = units(model, torch.randn(2, 3, 8, 8)).groups
    assert [[(p.unit, p.units, p.start, p.filter, p.filters) for p in g.consumers] for g in found[:2]] == [[(0, 4, 0, 0, 3)], [(0, 2, 4, 0, 3), (2, 6, 0, 3, 3)]]
    assert by_hand(model, torch.randn(2, 3, 8, 8), ["b"], dict(both=range(4, 12))).consumers == found[1].consumers
    with pytest.raises(InputError, match="do not follow one another"): by_hand(model, torch.randn(2, 3, 8, 8), ["a"], dict(both=[0, 2, 4, 6]))


def fit(model, opt, data, handle=None, scaler=None, closure=False, start=0):
    for x, y in data[start:]:
        def loss():
            opt.zero_grad()
            l = F.cross_entropy(model(x), y)
            (scaler.scale(l) if scaler else l).backward()
            return l
        if closure: opt.step(loss)
        elif scaler: loss(); scaler.step(opt); scaler.update()
        else: loss(); opt.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def made(seed=0, opt=torch.optim.Adam, method="continual_backprop", **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    o = opt(model.parameters(), **dict(lr=.01) | options)
    return model, o, drop_in(method, model, o, example=torch.zeros(2, 64).double() + torch.randn(2, 64).double(), **(HYPER | BOUNDARIES)[method])


OPTIMIZERS = {"adam": (torch.optim.Adam, {}), "foreach": (torch.optim.AdamW, dict(foreach=True)), "fused": (torch.optim.AdamW, dict(fused=True)), "momentum": (torch.optim.SGD, dict(momentum=.9, lr=.1))}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ("redo", "continual_backprop", "shrink_perturb", "snr", "regrama"))
def test_resumes_bit_for_bit(method, optimizer):
    data, (cls, options) = batches(60), OPTIMIZERS[optimizer]
    whole = fit(*made(opt=cls, method=method, **options)[:2], data)
    model, opt, handle = made(opt=cls, method=method, **options)
    fit(model, opt, data[:27])
    kept = copy.deepcopy((model.state_dict(), opt.state_dict(), handle.state_dict()))
    model, opt, handle = made(seed=1, opt=cls, method=method, **options)
    for it, state in zip((model, opt, handle), kept): it.load_state_dict(state)
    assert torch.equal(fit(model, opt, data, start=27), whole)
    free, o, handle = made(opt=cls, method=method, **options)
    handle.remove()
    assert not torch.equal(fit(free, o, data), whole) and not o._optimizer_step_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in free.modules())


@pytest.mark.parametrize("method", ("redo", "continual_backprop", "shrink_perturb", "l2_init", "snr", "regrama"))
def test_a_closure_and_compiling_change_nothing(method):
    data = batches(40)
    m, o, _ = made(method=method)
    whole = fit(m, o, data)
    m, o, _ = made(method=method)
    assert torch.equal(fit(m, o, data, closure=True), whole)
    m, o, _ = made(method=method)
    torch._dynamo.reset() # it takes compiled code of other models, without their hooks
    fit(torch.compile(m, backend="eager"), o, data)
    assert torch.allclose(torch.cat([p.detach().flatten() for p in m.parameters()]), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ("shrink_perturb", "l2_init", "redo"))
def test_micro_batches_that_are_summed_are_one_step(method):
    data = batches(40)
    model, opt, handle = made(opt=torch.optim.SGD, method=method)
    whole = fit(model, opt, data)
    model, opt, handle = made(opt=torch.optim.SGD, method=method)
    for x, y in data:
        opt.zero_grad()
        for i in (0, 1): (F.cross_entropy(model(x[i::2]), y[i::2]) / 2).backward()
        opt.step()
    summed = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert handle.steps == 40
    if method != "redo": assert torch.allclose(summed, whole, rtol=0, atol=1e-9) # ReDo judges by the last micro-batch


@pytest.mark.parametrize("method", ("redo", "continual_backprop", "snr", "regrama", "shrink_perturb", "l2_init"))
def test_under_autocast_weights_stay_what_they_are(method):
    "Forward in bfloat16: the method acts all the same, in the precision of the weights."
    data = [(x.float(), y) for x, y in batches(60)]
    def fitted(with_method):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
        opt = torch.optim.Adam(model.parameters(), lr=.01)
        if with_method: drop_in(method, model, opt, example=torch.randn(2, 64), **(HYPER | BOUNDARIES)[method])
        for x, y in data:
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16): loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    with_method, without = fitted(True), fitted(False)
    assert with_method.isfinite().all() and (with_method - without).abs().max() > .1 * without.abs().mean()


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", (copy.deepcopy, through_a_file))
@pytest.mark.parametrize("hyper", ({}, dict(renewed="before_next_step")), ids=str)
def test_a_copy_of_the_model_is_without_the_method(copied, hyper):
    data = batches(60)
    def fit_beside(copied=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).double()
        opt = torch.optim.Adam(model.parameters(), lr=.01)
        handle = ReDo(model, opt, example=data[0][0], **HYPER["redo"] | hyper)
        before = fit(model, opt, data[:30])
        teacher = copied and copied(model) # one that keeps its gradients
        for x, y in data[30:]:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if copied: teacher(torch.zeros_like(x))
            opt.step()
        if copied: assert torch.equal(torch.cat([p.detach().flatten() for p in teacher.parameters()]), before)
        assert handle.steps == len(data)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(fit_beside(copied), fit_beside())


def test_tied_weights_are_refused():
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(4, 64)
    model[2].weight = model[0].weight
    with pytest.raises(InputError, match="the weight '0.weight' is tied to '2.weight'"):
        ReDo(model, torch.optim.Adam(model.parameters()), example=x, period=5, threshold=.1)


@pytest.mark.parametrize("fused", (False, True))
def test_a_step_that_is_skipped_is_no_step(fused):
    data = batches(30)
    whole = fit(*made(opt=torch.optim.AdamW, fused=fused)[:2], data)
    model, opt, handle = made(opt=torch.optim.AdamW, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.**10)
    bad = [(torch.full_like(data[0][0], 1e308) * 10, data[0][1])]
    fit(model, opt, data[:10], scaler=scaler)
    before = handle.steps
    fit(model, opt, bad, scaler=scaler)
    assert handle.steps == before == 10
    assert torch.allclose(fit(model, opt, data, scaler=scaler, start=10), whole, rtol=0, atol=1e-6)


def test_frozen_layers_stay():
    model, x = vgg(), torch.randn(8, 3, 16, 16)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=.1)
    handles = ReDo(model, opt, example=x, period=1, threshold=.5), ShrinkPerturb(model, opt, shrink=.1, noise=.1), ContinualBackprop(model, opt, example=x, replacement_rate=.5, maturity=0)
    assert list(handles[0].stack.network.found.left_out) == ["0"]
    for _ in range(3):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    assert torch.equal(model[0].weight, before)


def perceptron(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, classes))


@pytest.mark.parametrize("where", ["a loop of one's own", "a cohort of modules"])
@pytest.mark.parametrize("method", methods)
def test_every_method_works_on_modules_or_says_why_not(method, where):
    x, y, model = torch.randn(16, 1, 8, 8), torch.randint(3, (16,)), perceptron(None, 3)
    hyper = hyper_of(method)
    try:
        if where == "a cohort of modules":
            cohort = Cohort(grid(method, [0], [1e-2], **{n: v[:1] for n, v in hyper.items()}), (1, 8, 8), 3, method, "adam", "module", factory=perceptron)
            step = lambda: cohort.step(x[None], y[None])
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            drop_in(method, model, optimizer, example=x, **{n: v[0] for n, v in hyper.items()})
            def step():
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    except InputError as e: return print(e)
    for _ in range(3): step()


def small(dtype=torch.float32):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    return model, torch.randn(5, 6, dtype=dtype), torch.randint(3, (5,))


def one_step(model, opt, x, y):
    opt.zero_grad()
    F.cross_entropy(model(x).float(), y).backward()
    opt.step()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.half))
def test_half_precision_weights_have_states_and_hyper_parameters_of_single_precision(dtype):
    "257 steps and a momentum of .999 are no numbers of bfloat16, which cannot count beyond 256 either."
    model, x, y = small(dtype)
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    drop_in("redo", model, opt, example=x, period=257, threshold=10.)
    renewed = []
    for i in range(1, 515):
        before = model[0].weight.clone()
        one_step(model, opt, x, y)
        if not torch.equal(model[0].weight, before): renewed.append(i)
    assert renewed == [257, 514]
    model, x, y = small(dtype)
    handle = drop_in("hare_and_tortoise", model, opt := torch.optim.SGD(model.parameters(), lr=.1), period=10**6, momentum=.999)
    before = model[4].bias.clone()
    for _ in range(300): one_step(model, opt, x, y)
    with handle.evaluated(): assert not torch.equal(model[4].bias, before)


@pytest.mark.parametrize("method, hyper", (("l2_init", dict(strength=.1)), ("shrink_perturb", dict(shrink=.1, noise=.1)), ("snr", {}), ("ewc", dict(importance=1.)), ("fire", {}), ("full_reset", {})))
def test_weights_of_bfloat16(method, hyper):
    model, x, y = small(torch.bfloat16)
    opt = torch.optim.Adam(model.parameters())
    handle = drop_in(method, model, opt, example=x, **hyper)
    for _ in range(3): one_step(model, opt, x, y)
    handle.task_ends(ended=[(x, y)], following=[(x, y)])
    one_step(model, opt, x, y)
    handle.load_state_dict(handle.state_dict())
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())


def test_what_is_frozen_later_stays():
    model, x, y = small()
    opt = torch.optim.Adam(model.parameters())
    drop_in("shrink_perturb", model, opt, shrink=.5, noise=.1)
    one_step(model, opt, x, y)
    model[0].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    one_step(model, opt, x, y)
    assert [torch.equal(p, b) for p, b in zip(model.parameters(), before)] == [True] * 2 + [False] * 4


def replaced(model, opt, x, y):
    drop_in("l2_init", model, opt, strength=1.)
    model[4] = nn.Linear(8, 3)
    opt.param_groups[0]["params"] = list(model.parameters())
    one_step(model, opt, x, y)


def removed(model, opt, x, y):
    handle = drop_in("full_reset", model, opt)
    handle.remove()
    handle.task_ends()


def of_another(model, opt, x, y):
    redo, l2_init = drop_in("redo", model, opt, example=x, period=1, threshold=.1), drop_in("l2_init", model, opt, strength=1.)
    redo.load_state_dict(l2_init.state_dict())


def diverged(model, opt, x, y):
    with torch.no_grad(): model[2].weight.fill_(torch.nan)
    measure(model, x, y)


def empty(model, opt, x, y):
    drop_in("continual_backprop", model, opt, example=x, replacement_rate=.01)
    model(x[:0]).sum().backward()
    opt.step()


@torch.inference_mode()
def in_inference(model, opt, x, y): units(model, x)


@pytest.mark.parametrize("does, says", (
    (replaced, "no longer has all parameters"), (removed, "was removed"), (of_another, "of l2_init, not of redo"), (diverged, "not finite"), (in_inference, "inference_mode"), (empty, "has no examples"),
    (lambda model, opt, x, y: drop_in("ewc", model, opt, importance=1.).task_ends(ended=iter([])), "ended has no batches"),
    (lambda model, opt, x, y: drop_in("redo", head := nn.Linear(6, 3), torch.optim.SGD(head.parameters()), example=x, period=1, threshold=.1), "no hidden ones"),
    (lambda model, opt, x, y: measure(model, x, y, units=units(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), x)), r"another model: 0.weight is \(4, 6\) there, and \(8, 6\) here"),
    (lambda model, opt, x, y: drop_in("l2_init", model, opt, strength=1., seed=1.5), "seed = 1.5"), (lambda model, opt, x, y: units(model, x, skip="0"), r"a list of names is needed, \['0'\]"),
    (lambda model, opt, x, y: measure(model, x, anchors={f"module.{n}": t for n, t in model.state_dict().items()}), "module.0.weight")))
def test_what_goes_wrong_is_said(does, says):
    model, x, y = small()
    with pytest.raises(InputError, match=says): does(model, torch.optim.Adam(model.parameters()), x, y)


def test_units_that_were_found_before_measure_a_model_that_diverged():
    model, x, y = small()
    found = units(model, x)
    with torch.no_grad(): model[2].weight.fill_(torch.nan)
    assert torch.tensor(measure(model, x, y, units=found)["dead_share"]).isnan()


class Heads(nn.Module):
    "One body, a head for each task."
    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.ModuleDict(dict(a=nn.Linear(16, 3), b=nn.Linear(16, 3)))
    def forward(self, x, task="a"): return self.heads[task](self.body(x))


def test_what_the_example_does_not_reach_is_named():
    model, (_, x, y) = Heads(), small()
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    found = units(model, x)
    assert [g.name for g in found] == ["body.0"] and "does not reach" in found.left_out["heads.b"]
    assert measure(model, x, y)["dead_share"] >= 0
    for options in (dict(example=x), dict(units=found)):
        with pytest.raises(InputError, match=r"does not reach \['heads.b'\]"): ReDo(model, opt, period=1, threshold=0., **options)
    ReDo(model, opt, example=x, skip=["heads.b"], period=1, threshold=0.).remove()
    assert units(nn.TransformerEncoderLayer(8, 2, 16), torch.randn(2, 3, 8)).left_out.keys() == {"linear2", "self_attn"} # not `out_proj`, whose weights the attention uses


def test_hooked_twice_it_would_act_twice():
    model, x, y = small()
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    first = ShrinkPerturb(model, opt, shrink=.1, noise=0.)
    with pytest.raises(InputError, match="hooked to this model and optimizer already"): ShrinkPerturb(model, opt, shrink=.2, noise=0.)
    ReDo(model, opt, example=x, period=1, threshold=.1) # another method
    first.remove()
    ShrinkPerturb(model, opt, shrink=.2, noise=0.)


@pytest.mark.parametrize("hyper", ({}, dict(renewed="before_next_step")), ids=str)
def test_measuring_in_training_mode_is_no_training(hyper):
    def course(measured):
        model, x, y = small()
        g = torch.Generator().manual_seed(0)
        for p in model.parameters(): p.data.uniform_(-.5, .5, generator=g)
        opt = torch.optim.SGD(model.parameters(), lr=.1)
        handle = ReDo(model, opt, example=x, period=2, threshold=.5, **hyper)
        x, y = torch.randn(8, 6, generator=g), torch.randint(3, (8,), generator=g)
        for _ in range(6):
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            before = [p.detach().clone() for p in model.parameters()]
            if measured: measure(model, x[:1], y[:1], train=True)
            assert all(map(torch.equal, before, model.parameters()))
            opt.step()
            if measured: measure(model, x[:1], y[:1], train=True)
        handle.remove()
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(course(True), course(False))


def test_continual_backprop_of_bfloat16_renews_units():
    model, x, y = small(torch.bfloat16)
    opt = torch.optim.Adam(model.parameters())
    drop_in("continual_backprop", model, opt, example=x, replacement_rate=.3, maturity=1)
    before = model[0].weight.clone()
    for _ in range(4): one_step(model, opt, x, y)
    rows = (model[0].weight != before).float().mean(1)
    assert all(p.isfinite().all() for p in model.parameters()) and rows.max() > .9


def test_a_change_of_type_after_hooking_is_named():
    model, x, y = small()
    opt = torch.optim.Adam(model.parameters())
    drop_in("continual_backprop", model, opt, example=x, replacement_rate=.3)
    one_step(model, opt, x, y)
    model.double()
    with pytest.raises(InputError, match="float64 on cpu now, and were torch.float32"): one_step(model, opt, x.double(), y)


@pytest.mark.parametrize("cls, options, what, start", ((torch.optim.Rprop, dict(lr=.01), "step_size", .01), (torch.optim.Adagrad, dict(initial_accumulator_value=.5), "sum", .5)))
def test_what_an_optimizer_forgets_is_as_at_the_start(cls, options, what, start):
    model, x, y = small()
    opt = cls(model.parameters(), **options)
    for _ in range(5): one_step(model, opt, x, y)
    drop_in("redo", model, opt, example=x, period=1, threshold=10.)
    one_step(model, opt, x, y)
    assert (opt.state[model[0].weight][what] == start).all()


def test_accuracy_where_it_is_plain_what_it_is():
    torch.manual_seed(0)
    model, x, y = small()
    given = model(x)
    assert measure(model, x, y)["accuracy"] == pytest.approx((given.argmax(1) == y).float().mean().item())
    binary = lambda out, y: F.binary_cross_entropy_with_logits(out, y.float())
    one = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    assert "accuracy" not in measure(one, x, y % 2, loss=binary)
    dense, pixels, labels = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1)), torch.randn(3, 2, 4), torch.randint(4, (3, 4))
    assert measure(dense, pixels, labels)["accuracy"] == pytest.approx((dense(pixels).argmax(1) == labels).float().mean().item())
    last = lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())
    tokens, of = torch.randn(5, 7, 6), torch.randint(3, (5, 7))
    assert measure(model, tokens, of, loss=last)["accuracy"] == pytest.approx((model(tokens).argmax(2) == of).float().mean().item())


class Gives(nn.Module):
    def __init__(self, how): super().__init__(); self.net, self.how = small()[0], how
    def forward(self, x): return self.how(self.net(x))


@dataclass
class Answer:
    logits: torch.Tensor


def test_outputs_of_all_kinds_are_measured():
    _, x, y = small()
    for how in (lambda t: dict(logits=t), Answer, lambda t: SimpleNamespace(logits=t)):
        out = measure(Gives(how), x, y)
        assert {"accuracy", "loss"} <= set(out) and out["dead_share"] >= 0 and out["srank"] > 0
    both = measure(Gives(lambda t: (t, t)), x, y, loss=lambda o, y: F.cross_entropy(o[0], y))
    assert both["loss"] > 0 and "accuracy" not in both
    assert measure(Gives(lambda t: dict(out=t)), x, y, loss=lambda o, y: F.cross_entropy(o["out"], y))["loss"] > 0
    with pytest.raises(InputError, match="The model gives a dict, and y is a tensor .*; loss= is a function"): measure(Gives(lambda t: dict(out=t)), x, y)
    with pytest.raises(InputError, match="a single number is needed"): measure(small()[0], x, y, loss=lambda o, y: F.cross_entropy(o, y, reduction="none"))


@pytest.mark.parametrize("name, options", [("mlp", dict(hidden=[12, 9])), ("cnn", dict(channels=[4], kernels=[3], hidden=[8])), ("mlp", dict(hidden=[12], layer_norm=True)),
                                           ("resnet18", dict(width=2)), ("resnet18", dict(width=2, norm="batch")), ("vit_small", dict(layers=1, heads=2, width=8, hidden=12))])
def test_measure_says_what_the_probes_of_a_cohort_say(name, options):
    cohort = Cohort(grid("plain", [5], [1e-2]), (1, 8, 8), 3, "plain", "sgd", name, dtype=torch.float64, **options)
    for x, y in batches(20): cohort.step(x[None], y[None])
    x, y = batches(1)[0]
    its = cohort.probe(x[None], y[None], Probes(readiness=3, grama=True, kernel=4))
    mine = measure(cohort.module(0), x, y, readiness=3, kernel=4) | dict(end_accuracy=measure(cohort.module(0), x, y)["accuracy"])
    other = {"distance_from_init"} # for which measure wants anchors
    if name in ("resnet18", "vit_small"): other |= {"dead_share", "dormant_share"} # of layers there, of groups of units here
    assert its.keys() - other <= mine.keys() and {"readiness", "mean_gradient_square", "kernel_rank", "grama_share"} <= mine.keys()
    for n in its.keys() - other: assert mine[n] == pytest.approx(its[n].item(), rel=1e-6, abs=1e-9), n


class Named(nn.Module):
    def __init__(self): super().__init__(); self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x, scale, mask=None): return dict(logits=self.net(x) * scale)


class Bag(nn.Module):
    def __init__(self): super().__init__(); self.words, self.net = nn.Embedding(9, 4, sparse=True), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x): return self.net(self.words(x).mean(1))


class Complex(nn.Module):
    def __init__(self): super().__init__(); self.w, self.net = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64)), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x): return self.net((x.to(self.w) @ self.w).abs())


@pytest.mark.parametrize("make, x", ((Named, dict(x=torch.randn(7, 6), scale=torch.tensor(2.))), (Named, (torch.randn(7, 6), 2.)), (Bag, torch.randint(9, (7, 5))), (Complex, torch.randn(7, 6))))
def test_newer_probes_of_models_as_users_have_them(make, x):
    torch.manual_seed(0)
    model, y = make(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error") # as of complex numbers that lose a part
        found = measure(model, x, y, readiness=3, kernel=4)
    logits = lambda x: out["logits"] if isinstance(out := model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x), dict) else out
    def flat(value): return torch.cat([torch.view_as_real(g.to_dense() + 0j).flatten() for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])
    of = lambda i: flat(F.cross_entropy(logits(x)[i], y[i]))
    three = torch.stack([of(slice(i, i + 2)) for i in (0, 2, 4)])
    assert found["mean_gradient_square"] == pytest.approx(three.mean(0).square().sum().item(), rel=1e-4)
    assert found["readiness"] == pytest.approx((three.mean(0).square().sum() / three.square().sum(1).mean()).item(), rel=1e-4)
    out = logits(x)
    rows = torch.stack([torch.stack([flat(out[i, c]) for i in range(4)]) for c in range(3)])
    assert found["kernel_rank"] == srank(torch.linalg.eigvalsh((rows @ rows.mT).sum(0).double()).clamp(min=0).flip(-1)[None])
    weight = torch.autograd.grad(F.cross_entropy(out, y), model.net[0].weight)[0].abs().mean(1)
    assert found["grama_share"] == pytest.approx((weight <= .01 * weight.mean()).float().mean().item())


def test_a_tangent_kernel_in_training_mode_is_that_of_a_batch():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double(), torch.randn(5, 6, dtype=torch.float64)
    found = measure(model, x, train=True, kernel=4)["kernel_rank"]
    given = copy.deepcopy(model).train()
    out = given(x[:4])
    rows = torch.stack([torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(out[i, c], list(given.parameters()), retain_graph=True)]) for i in range(4)]) for c in range(3)])
    assert found == srank(torch.linalg.eigvalsh((rows @ rows.mT).sum(0)).clamp(min=0).flip(-1)[None])


def test_a_model_of_one_output_without_its_dimension():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    assert 1 <= measure(model, torch.randn(5, 6), torch.randn(5), loss=F.mse_loss, kernel=3, readiness=2)["kernel_rank"] <= 3


def test_what_is_frozen_is_measured():
    model, x, y = small()
    before = measure(model, x, y, readiness=2, kernel=2)
    of_gradients = dict.fromkeys(("gradient_norm", "grama_share", "readiness", "mean_gradient_square", "kernel_rank"), pytest.approx(float("nan"), nan_ok=True))
    assert measure(model.requires_grad_(False), x, y, readiness=2, kernel=2) == before | of_gradients
    assert not any(p.requires_grad for p in model.parameters())


def test_stuck_units_of_what_learns_alone():
    model, x, y = small()
    found = units(model, x)
    assert [g.name for g in found] == ["0", "2"]
    alone = measure(model, x, y, units=[found.groups[1]])["grama_share"]
    model[0].requires_grad_(False)
    assert measure(model, x, y)["grama_share"] == alone


RENEWING = dict(redo=dict(period=3, threshold=.1), waiting=dict(period=3, threshold=.1, renewed="before_next_step"), snr=dict(update_every=1), cpr=dict(period=3),
                continual_backprop=dict(replacement_rate=.1, maturity=2), regrama=dict(period=3, threshold=.1), upgd=dict(noise=.1), weight_clipping=dict(bound=1.))


@pytest.mark.parametrize("name", RENEWING)
def test_a_model_is_compiled_once(name):
    torch._dynamo.reset()
    model, x, y = small()
    opt, counted = torch.optim.SGD(model.parameters(), lr=.1), CompileCounter()
    handle = drop_in(name.replace("waiting", "redo"), model, opt, example=x, **RENEWING[name])
    compiled = torch.compile(model, backend=counted, fullgraph=name != "waiting") # which has to act before a pass
    for _ in range(12):
        one_step(compiled, opt, x, y)
    assert handle.steps == 12 and counted.frame_count == 1


@pytest.mark.parametrize("in_place", (True, False))
def test_a_compiled_model_is_measured_and_renewed(in_place):
    torch._dynamo.reset()
    model, x, y = small()
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    plain = measure(model, x, y)
    if in_place: model.compile(backend="eager")
    run = model if in_place else torch.compile(model, backend="eager")
    handle = ReDo(run, opt, example=x, period=1, threshold=10.)
    assert measure(run, x, y) == plain
    one_step(run, opt, x, y)
    assert handle.steps == 1 and (model[2].weight == 0).all() and measure(run, x, y)["srank"] >= 0
    handle.remove()
    torch._dynamo.reset()


def parametrized(which):
    model = small()[0]
    which(model[0])
    return model


@pytest.mark.parametrize("which", (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm))
def test_weights_that_are_made_by_a_parametrization_are_named(which):
    model, (_, x, y) = parametrized(which), small()
    with pytest.raises(InputError, match="'0': the weights of '0' are made of others"): units(model, x)
    assert [g.name for g in units(model, x, skip=["0"])] == ["2"]
    assert measure(model, x, y, skip=["0"])["dead_share"] >= 0


def test_units_are_given_by_hand():
    model, x, y = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    group = by_hand(model, x, ["0"], ["2"])
    for given in (group, [group], units(model, x)):
        handle = ReDo(model, opt, units=given, period=1, threshold=10.)
        assert [g.name for g in handle.stack.network.found][0] == "0"
        handle.remove()
    assert measure(model, x, y, units=[group])["dead_share"] >= 0
    without = measure(model, x, y, units=[])
    assert without["dead_share"] != without["dead_share"] and without["srank"] > 0
    with pytest.raises(InputError, match="units is a str"): ReDo(model, opt, units="0", period=1, threshold=1.)


def test_what_cannot_be_followed_is_measured_without_units(monkeypatch):
    recurrent = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.GRU(8, 4, batch_first=True))
    class Last(nn.Module):
        def __init__(self): super().__init__(); self.net, self.head = recurrent, nn.Linear(4, 3)
        def forward(self, x): return self.head(self.net(x)[0][:, -1])
    model, x, y = Last(), torch.randn(5, 7, 6), torch.randint(3, (5,))
    with pytest.raises(InputError, match=f"'net.0': {WITHOUT_END}"): measure(model, x, y)
    assert units(model, x, skip=["net.0"]).left_out["net.0"] == "as asked for" and measure(model, x, y, skip=["net.0"])["loss"] > 0
    def fails(*_): raise ValueError("a graph of another kind")
    monkeypatch.setattr("l2init.units._coupled", fails)
    with pytest.raises(InputError, match=r"cannot be followed\. Describe its units .*measure\(units=\[\]\) does without.*a graph of another kind"): measure(model, x, y)
    model.config = SimpleNamespace(use_cache=True) # as in transformers
    with pytest.raises(InputError, match="give use_cache=False with the example"): units(model, x)
    assert measure(model, x, y, units=[])["loss"] > 0


def test_what_is_no_model_is_named():
    model, x, y = small()
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    with pytest.raises(InputError, match="not a generator"): measure(model.parameters(), x)
    with pytest.raises(InputError, match="not for a generator"): L2Init(model.parameters(), .1)
    with pytest.raises(InputError, match="no shape yet"): units(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), x)
    with pytest.raises(InputError, match="has no 'steps'"): ReDo(model, opt, example=x, period=1, threshold=1.).load_state_dict(dict(method="redo"))



def little(): return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))


def of_ten(n=8): return torch.randn(n, 10), torch.randint(0, 5, (n,))


@pytest.mark.parametrize("method, options", [("l2_init", dict(strength=.3)), ("l2", dict(strength=.3)), ("upgd", dict(noise=.01)), ("spectral", dict(strength=.1))])
@pytest.mark.parametrize("kind", (torch.optim.SGD, torch.optim.Adam))
def test_an_optimizer_that_maximizes_the_negative_loss_does_the_same(method, options, kind):
    ends, (x, y) = [], of_ten()
    for climbs in (False, True):
        torch.manual_seed(0)
        model = little()
        opt = kind(model.parameters(), lr=.05, maximize=climbs)
        drop_in(method, model, opt, **options)
        for _ in range(20):
            opt.zero_grad()
            (F.cross_entropy(model(x), y) * (-1 if climbs else 1)).backward()
            opt.step()
        ends.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.allclose(*ends, atol=1e-6) and ends[0].isfinite().all()


def test_normalize_and_project_resumes_to_the_first_lengths():
    def made(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))
        opt = torch.optim.SGD(model.parameters(), lr=.5)
        return model, opt, drop_in("normalize_and_project", model, opt, example=x)
    def step(model, opt):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    x, y = of_ten()
    first, second = made(0), made(1)
    for _ in range(3): step(*first[:2])
    for one, other in zip(first, second): other.load_state_dict(copy.deepcopy(one.state_dict()))
    for one in (first, second): step(*one[:2])
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters()))


COMPOSED = {"l2 + l2_init": {"l2.strength": .1, "l2_init.strength": .2}, "redo + regrama": {f"{m}.{n}": v for m in ("redo", "regrama") for n, v in dict(period=2, threshold=.1).items()},
            "shrink_perturb + upgd": {"shrink": .1, "shrink_perturb.noise": .1, "upgd.noise": .2}, "continual_backprop + snr": dict(replacement_rate=.1)}


@pytest.mark.parametrize("method", COMPOSED)
def test_parts_that_share_the_name_of_an_option(method):
    model, (x, y) = little(), of_ten()
    opt = torch.optim.Adam(model.parameters())
    handle = drop_in(method, model, opt, example=x, **COMPOSED[method])
    for _ in range(3):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    if method == "l2 + l2_init": assert [p.values["strength"].item() for p in handle.parts] == pytest.approx([.1, .2])
    assert all(p.isfinite().all() for p in model.parameters())


def test_accuracy_leaves_out_ignored_labels():
    model, (x, _) = little(), of_ten()
    y = model(x).argmax(1)
    for ignored, loss in ((-100, F.cross_entropy), (-1, nn.CrossEntropyLoss(ignore_index=-1))):
        y[:4] = ignored
        assert measure(model, x, y, loss=loss)["accuracy"] == 1


class Masked(nn.Module): # the second argument has no examples
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
    def forward(self, x, mask): return self.b(torch.relu(self.a(x)) * mask.sum(0)[:1]).mean(1)


def test_ewc_takes_examples_apart_and_says_if_it_cannot():
    model, mask = Masked(), torch.tril(torch.ones(4, 4))
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    handle = drop_in("ewc", model, opt, importance=10.)
    x, y = torch.randn(3, 4, 6), torch.tensor([0, 1, 2])
    handle.task_ends(ended=[((x, mask), y)])
    wanted = torch.zeros_like(model.b.bias)
    for i in range(3):
        wanted += torch.autograd.grad(F.cross_entropy(model(x[i:i + 1], mask), y[i:i + 1]), model.b.bias)[0] ** 2
    found = next(t for p in handle.parts for n, t in p.state.items() if "fisher" in n)[0]
    assert torch.allclose(handle.stack.network.views(found.view(1, -1))["b"]["bias"][0], wanted / 3, atol=1e-6)
    with pytest.raises(InputError, match="task_ends: it asks the model about some of the 4 examples at a time"): # the mask has as many rows as there are examples
        handle.task_ends(ended=[((torch.randn(4, 4, 6), mask), torch.tensor([0, 1, 2, 3]))])


WRONG = {"a batch": lambda x, y: (x, y), "fewer labels": lambda x, y: [(x, y[:4])], "no examples": lambda x, y: [(x[:0], y[:0])], "a number": lambda x, y: [3],
         "triples": lambda x, y: [(x, y, y)], "a dictionary": lambda x, y: [dict(x=x, y=y)], "a list of labels": lambda x, y: [(x, y.tolist())],
         "numbers": lambda x, y: [(x, y.float())]}


@pytest.mark.parametrize("of", WRONG)
def test_wrong_batches_at_a_boundary(of):
    model, (x, y) = little(), of_ten()
    handle = drop_in("ewc", model, torch.optim.SGD(model.parameters(), lr=.1), importance=10.)
    with pytest.raises(InputError, match="task_ends: "): handle.task_ends(ended=WRONG[of](x, y))


def test_a_state_of_another_model():
    def made(first, second):
        model = nn.Sequential(nn.Linear(first, second, bias=False), nn.Linear(second, first, bias=False))
        return drop_in("l2_init", model, torch.optim.SGD(model.parameters(), lr=.1), strength=.1)
    with pytest.raises(InputError, match=r"0\.weight is of shape \(16, 10\) there, and of \(10, 16\) here"):
        made(16, 10).load_state_dict(made(10, 16).state_dict())


def test_autocast_around_it_changes_nothing():
    model, (x, y) = little(), of_ten()
    with torch.autocast("cpu", torch.bfloat16):
        model(x) # its weights are in the cache now
        assert len(units(model, x)) == 1 and measure(model, x, y)["loss"] > 0
        assert torch.is_autocast_cache_enabled()
        ReDo(model, torch.optim.SGD(model.parameters(), lr=.1), example=x, period=2, threshold=.1)


def test_a_lookup_that_renormalizes_leaves_no_trace():
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=1.), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad(): model[0].weight.mul_(9)
    before, x = model[0].weight.clone(), torch.randint(0, 7, (5, 3))
    units(model, x)
    measure(model, x)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("between", (nn.PixelShuffle(2), nn.MaxPool1d(2)))
def test_what_groups_units_anew_is_named(between):
    model = (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), between, nn.Conv2d(2, 5, 3)) if isinstance(between, nn.PixelShuffle)
             else nn.Sequential(nn.Linear(10, 16), nn.ReLU(), between, nn.Linear(8, 5)))
    x = torch.randn(2, 3, 6, 6) if isinstance(between, nn.PixelShuffle) else torch.randn(2, 10)
    with pytest.raises(InputError, match="not understood"): units(model, x)


def test_units_of_which_another_optimizer_has_the_columns():
    model, (x, _) = little(), of_ten()
    with pytest.raises(InputError, match="does not have the weights of '2'"):
        ReDo(model, torch.optim.Adam(model[0].parameters()), example=x, period=2, threshold=.1)
