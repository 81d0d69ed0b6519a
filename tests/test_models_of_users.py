"""Models and optimizers as users have them, which a drop-in, `units`, `measure` or a cohort must treat rightly or refuse by name."""
import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import hyper_of
from torch import nn

from l2init.cohorts import Cohort
from l2init.drop_in import ContinualBackprop, ReDo, ShrinkPerturb, drop_in, measure
from l2init.internals.core import InputError
from l2init.methods import grid, methods
from l2init.regularizers import L2, L2Init
from l2init.units import initial_distributions, linear_dims, tensors_of, units

X, Y = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def sgd(model, lr=.1): return torch.optim.SGD(model.parameters(), lr=lr)


def step(model, optimizer, x=X):
    optimizer.zero_grad()
    F.cross_entropy(model(x), Y).backward()
    optimizer.step()


@pytest.mark.parametrize("fill, spread", [(lambda w: nn.init.trunc_normal_(w, std=.02), .02), (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), 96**-.5 / 3**.5),
                                          (lambda w: nn.init.xavier_uniform_(w, gain=.8), .8 * math.sqrt(2 / 480)), (lambda w: nn.init.orthogonal_(w), 384**-.5)])
def test_new_weights_have_the_spread_of_the_old(fill, spread):
    torch.manual_seed(0)
    layer = nn.Linear(96, 384)
    fill(layer.weight)
    before = layer.weight.std().item()
    optimizer = sgd(layer, 0.)
    ShrinkPerturb(layer, optimizer, shrink=1., noise=1.)
    optimizer.step()
    assert abs(before / spread - 1) < .05 and abs(layer.weight.std().item() / before - 1) < .05


def test_few_numbers_may_be_pytorch_s_own():
    for seed in range(50):
        torch.manual_seed(seed)
        found = initial_distributions(nn.Linear(4, 3))
        assert all(d.scale == .5 or d.normal for d in found.values())
        assert not found["weight"].normal


class Merges(nn.Linear):
    "As LoRA layers do."
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.a, self.merged = nn.Parameter(torch.full_like(self.weight, .1)), False
        self.weight.requires_grad_(False)
    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode: self.weight.data.add_(self.a.data, alpha=-1. if mode else 1.)
        self.merged = not mode
        return self
    def forward(self, x): return F.linear(x, self.weight if self.merged else self.weight + self.a, self.bias)


def test_layers_that_merge_weights_by_mode_are_left_alone():
    model = nn.Sequential(Merges(10, 16), nn.ReLU(), Merges(16, 4))
    before = copy.deepcopy(model.state_dict())
    for train in (False, True): measure(model, X, Y, train=train, units=[])
    units(model, X)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and not model[0].merged
    F.cross_entropy(model(X), Y).backward()
    assert model[0].a.grad is not None


class Follows(nn.Module):
    "With a buffer that each pass changes: `how` says how."
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.how = nn.Linear(10, 16), nn.Linear(16, 4), how
        self.register_buffer("mean", torch.zeros(16))
    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        new = .9 * self.mean + .1 * h.detach().mean(0)
        if self.how == "another": self.mean = new
        else: self.mean.copy_(new)
        return self.last(h + new)


@pytest.mark.parametrize("how", ("another", "in place"))
def test_buffers_are_as_before(how):
    model = Follows(how)
    buffer, was = model.mean, model.mean.clone()
    for train in (False, True): measure(model, X, Y, units=[], train=train)
    assert model.mean is buffer and torch.equal(buffer, was)


def test_a_cohort_keeps_a_buffer_that_is_changed_in_place_and_refuses_one_that_is_replaced():
    make = lambda how: Cohort(grid("plain", [0], [1e-3]), (1, 2, 5), 4, "plain", network_name="module", factory=lambda shape, classes: Follows(how))
    with pytest.raises(InputError, match="in the place of its buffer 'mean'"): make("another")
    make("in place")


def test_an_optimizer_of_ones_own_class_is_followed_once():
    class Own(torch.optim.SGD):
        def step(self, closure=None): return super().step(closure)
    sgd(mlp()) # marks the step of the class above, too
    model, weights = nn.Linear(3, 1, bias=False), torch.ones(1, 3)
    with torch.no_grad(): model.weight.copy_(weights)
    optimizer = Own(model.parameters(), lr=1.)
    drop_in("l2", model, optimizer, strength=.1)
    for n in (1, 2):
        model.weight.grad = torch.zeros(1, 3)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), weights * .9**n)


def test_an_optimizer_that_steps_by_another_is_refused():
    class SAM(torch.optim.Optimizer):
        def __init__(self, params):
            self.base_optimizer = torch.optim.SGD(params, lr=.1)
            super().__init__(self.base_optimizer.param_groups, {})
        def step(self, closure=None): self.base_optimizer.step()
    model = mlp()
    optimizer = SAM(list(model.parameters()))
    optimizer.zero_grad()
    for hook in (lambda: drop_in("l2", model, optimizer, strength=.1), lambda: L2Init(model, .1).attach(optimizer)):
        with pytest.raises(InputError, match="give optimizer.base_optimizer"): hook()
    drop_in("l2", model, optimizer.base_optimizer, strength=.1)


def test_units_that_were_frozen_later_are_not_renewed():
    model = mlp()
    optimizer = sgd(model)
    ReDo(model, optimizer, X, period=1, threshold=10.)
    step(model, optimizer)
    model[0].requires_grad_(False)
    was = model[0].weight.clone()
    with pytest.raises(InputError, match="'0', which belongs to hidden units, was frozen"): step(model, optimizer)
    assert torch.equal(model[0].weight, was)


def test_what_looks_at_the_optimizer_s_step_comes_first():
    model = mlp()
    optimizer = sgd(model)
    upgd = dict(noise=.01)
    redo = ReDo(model, optimizer, X, period=1, threshold=.1)
    with pytest.raises(InputError, match="'redo \\+ upgd'"): drop_in("upgd", model, optimizer, **upgd)
    redo.remove()
    drop_in("upgd", model, optimizer, **upgd)
    ReDo(model, optimizer, X, period=1, threshold=.1)
    with pytest.raises(InputError, match="attach first"): L2Init(model, .1).attach(optimizer)


class Tokens(nn.Module):
    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.last = nn.Conv2d(1, channels, 4, 4), nn.ReLU(), nn.Linear(channels, 4)
        with torch.no_grad(): self.conv.bias.copy_(torch.where(torch.arange(channels) < 4, -100., 100.))
    def forward(self, x): return self.last(self.act(self.conv(x).flatten(2).transpose(1, 2))).mean(1)


@pytest.mark.parametrize("channels", (12, 16)) # of 16 tokens
def test_as_many_tokens_as_channels(channels):
    model, x = Tokens(channels), torch.rand(6, 1, 16, 16)
    assert measure(model, x)["dead_share"] == pytest.approx(4 / channels)


def test_an_optimizer_that_keeps_copies_of_weights_is_refused():
    class Averages(torch.optim.Optimizer):
        def __init__(self, params): super().__init__(params, dict(lr=.1))
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                z = self.state[p].setdefault("z", p.clone())
                z.sub_(p.grad, alpha=.1)
                p.lerp_(z, .5)
    Averages.__module__ = "somebody"
    model = mlp()
    optimizer = Averages(list(model.parameters()))
    ShrinkPerturb(model, optimizer, shrink=.1, noise=0.)
    with pytest.raises(InputError, match="Averages keeps 'z', which seems to be a copy"): step(model, optimizer)


class Own(nn.Module):
    "A linear layer of one's own, whose weight is [inputs, outputs]; `of` makes it something else."
    def __init__(self, a, b, of=lambda w: w):
        super().__init__()
        self.weight, self.bias, self.of = nn.Parameter(torch.randn(a, b) * .3), nn.Parameter(torch.zeros(b)), of
    def forward(self, x): return torch.addmm(self.bias, x, self.of(self.weight))


def own_mlp():
    "`mlp()`, of other layers."
    model = nn.Sequential(Own(10, 16), nn.ReLU(), Own(16, 16), nn.ReLU(), Own(16, 4))
    model.load_state_dict({n: p.mT if p.dim() == 2 else p for n, p in mlp().state_dict().items()})
    return model


def test_layers_of_one_s_own_are_named():
    found = units(nn.Sequential(Own(10, 16, torch.square), nn.GELU(), Own(16, 12, torch.square), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)), X)
    assert [g.name for g in found] == ["3"] and {"0", "2"} <= set(found.left_out)


@pytest.mark.parametrize("method, hyper", [("redo", dict(period=3, threshold=.5)), ("continual_backprop", dict(replacement_rate=.1, maturity=2))])
def test_linear_layers_of_one_s_own_are_renewed_as_those_of_pytorch(method, hyper):
    torchs, own = mlp(), own_mlp()
    def first_renewed(model): # of each layer: which units, in which step; the draws are others from then on
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        found = units(model, X)
        drop_in(method, model, optimizer, units=found, **hyper)
        silent = lambda: [(g.columns(tensors_of(model))[0][0] == 0).all(1).tolist() for g in found]
        for i in range(8):
            step(model, optimizer)
            if any(map(any, silent())): return i, silent()
    assert first_renewed(own) == first_renewed(torchs) is not None
    loss = F.cross_entropy(own(X), Y)
    assert measure(own, X)["srank"] >= 1
    loss.backward() # although its layers were tried meanwhile


@pytest.mark.parametrize("method, other", [*((m, {}) for m in methods), ("upgd", dict(scope="local"))], ids=str)
def test_linear_layers_of_one_s_own_are_treated_as_those_of_pytorch(method, other):
    torchs, own, hyper = mlp(), own_mlp(), {n: v[0] for n, v in hyper_of(method).items()} | other
    for model in (torchs, own):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        try: handle = drop_in(method, model, optimizer, example=X, **hyper)
        except InputError as e: return print(e)
        for i in range(6):
            step(model, optimizer)
            if i == 3: handle.task_ends(ended=[(X, Y)], following=[(X.flip(0), Y)])
    for p, q in zip(torchs.parameters(), own.parameters()):
        assert torch.allclose(p.mT if p.dim() == 2 else p, q, rtol=0, atol=1e-5)


class Scale(nn.Module):
    "One factor for each channel, in a matrix of one row."
    def __init__(self, n): super().__init__(); self.weight = nn.Parameter(torch.ones(1, n))
    def forward(self, x): return x * self.weight


class Normalized(nn.Linear):
    def forward(self, x): return F.linear(x, F.normalize(self.weight, dim=-1), self.bias)


class Without(nn.Module):
    "A linear layer without a bias, and with what its parent asks for."
    def __init__(self, a, b): super().__init__(); self.weight = nn.Parameter(torch.randn(b, a) * .3)
    inputs = property(lambda self: self.weight.shape[1])
    def forward(self, x, factor=1.): return factor * (x @ self.weight.T)


class NoBias(Without):
    "The same, with a bias that is None."
    def __init__(self, a, b): super().__init__(a, b); self.register_parameter("bias", None)
    def forward(self, x, factor=1.): return factor * F.linear(x, self.weight, self.bias)


class Parent(nn.Module):
    def __init__(self, of): super().__init__(); self.a, self.b = of(10, 16), of(16, 4)
    def forward(self, x):
        assert isinstance(self.a, Without)
        return self.b(F.relu(self.a(x, 2.)).view(-1, self.b.inputs))


class Caching(Own):
    "It keeps its weight in evaluation, until training begins."
    kept = None
    def train(self, mode=True):
        if mode: self.kept = None
        return super().train(mode)
    def forward(self, x):
        if self.training: return super().forward(x)
        if self.kept is None: self.kept = self.weight.detach().clone()
        return torch.addmm(self.bias, x, self.kept)


class Draws(nn.Module):
    "Its features are drawn, also in evaluation."
    def __init__(self): super().__init__(); self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(16, 4), nn.Linear(4, 4)
    def forward(self, x):
        mean = self.b(self.a(x).relu())
        return self.c(mean + torch.randn_like(mean))


class Keeps(nn.Module):
    "How many numbers it gives depends on its weights."
    def __init__(self, by): super().__init__(); self.a, self.b, self.by = nn.Linear(10, 16), nn.Linear(16, 1), by
    def forward(self, x):
        h = self.a(x)
        v = self.b(h.relu())[:, 0]
        return dict(all=v, kept=v[self.by(h, v)])


def test_what_scales_is_no_linear_layer():
    assert linear_dims(Scale(4)) is None is linear_dims(Scale(1))
    torch.manual_seed(0)
    with pytest.raises(InputError, match="the parameter '1.weight' is no layer whose rows are known"): units(nn.Sequential(nn.Linear(10, 16), Scale(16), nn.ReLU(), nn.Linear(16, 4)), X)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4), Scale(4))
    with pytest.raises(InputError, match="The output layer is not known"): drop_in("head_reset", model, sgd(model), example=X)


def test_layers_that_normalize_their_weights_are_refused(): # to be without a silent unit's column is to have longer others
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), Normalized(16, 4))
    with pytest.raises(InputError, match="'0': the model does not do what its graph says"): units(model, X)
    assert len(units(nn.Sequential(Normalized(10, 16), nn.ReLU(), nn.Linear(16, 4)), X)) == 1


@pytest.mark.parametrize("of", [Without, NoBias])
def test_a_linear_layer_without_a_bias_and_what_its_parent_asks_of_it(of):
    torch.manual_seed(0)
    found = units(Parent(of), X)
    assert [(g.name, g.units) for g in found] == [("a", 16)] and not found.left_out
    assert measure(Parent(of), X)["srank"] >= 1


def test_a_layer_is_tried_without_its_knowing():
    torch.manual_seed(0)
    model = nn.Sequential(Caching(10, 16), nn.ReLU(), Caching(16, 4))
    drop_in("l2", model, sgd(model), strength=0.)
    assert model[0].kept is None
    with pytest.raises(InputError, match="the model does not do what its graph says"): units(model, X) # it does not see that its rows are 0
    measure(model, X, Y, units=[])
    assert "kept" not in vars(model[0])
    step(model, sgd(model))
    assert torch.equal(model(X), model.eval()(X))
    measure(model, X, Y, units=[])
    assert "kept" in vars(model[0]) # it was there before


def test_models_that_draw_are_tried_with_the_same_numbers():
    torch.manual_seed(0)
    assert [g.name for g in units(Draws(), X)] == ["a"]


def test_models_whose_output_has_a_size_that_depends_on_weights():
    torch.manual_seed(0)
    for least in (0., 99.): assert [g.name for g in units(Keeps(lambda h, v: v > least), X)] == ["a"] # some, none
    with pytest.raises(InputError, match="'a': the model does not do what its graph says"): units(Keeps(lambda h, v: (h > 0).sum(1) > 7), X)


def test_a_dictionary_as_the_only_argument():
    class Takes(nn.Module):
        def __init__(self): super().__init__(); self.net = mlp()
        def forward(self, inputs): return self.net(inputs["x"])
    with pytest.raises(InputError, match=r"Where the dictionary is the argument, put it in a tuple, \(x,\)"): units(Takes(), dict(x=X))
    assert len(units(Takes(), (dict(x=X),))) == 2
    with pytest.raises(InputError, match="list of a tensor.*a tensor.*a tensor.*, …: "): units(mlp(), [X[0]] * 32)


def test_the_gradient_norm_of_complex_weights():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1 + 2j, -1j]))
        def forward(self, x): return (self.w * x).sum().abs()[None]
    model = Complex()
    w = model.w
    value = measure(model, torch.ones(2), torch.zeros(1), loss=lambda out, y: (out - y).square().sum(), units=[])
    grad, = torch.autograd.grad((w.sum()).abs()**2, w)
    assert value["gradient_norm"] == pytest.approx(grad.abs().square().sum().sqrt().item(), rel=1e-5)


def test_what_only_streams_have_is_refused_at_once():
    model = mlp()
    with pytest.raises(InputError, match="which only streams have"): ReDo(model, sgd(model), X, period=1, threshold=.1, judged_on="next_test")


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)])
    def forward(self, x, which=None): return sum(h(x) for h in self.heads) if which is None else self.heads[which](x)


WAITING = dict(redo=dict(period=2, threshold=1e9), continual_backprop=dict(replacement_rate=.3, maturity=1), snr=dict(update_every=1, lowest=1, highest=2),
               regrama=dict(period=2, threshold=1e9), cpr=dict(period=2, replacement_rate=.5))


@pytest.mark.parametrize("method", WAITING)
def test_units_that_had_no_part_in_a_batch_wait(method):
    "Each head as if it were alone in the steps in which it runs; the other stays, bit for bit."
    def trained(turns, **more):
        torch.manual_seed(0)
        model = Heads()
        optimizer = sgd(model)
        drop_in(method, model, optimizer, X, **WAITING[method], **more)
        for which in turns:
            before = copy.deepcopy(model.heads[1 - which].state_dict())
            optimizer.zero_grad()
            F.cross_entropy(model(X, which), Y).backward()
            optimizer.step()
            assert all(torch.equal(before[n], t) for n, t in model.heads[1 - which].state_dict().items())
        return model.heads[0].state_dict()
    with pytest.warns(UserWarning, match=r"the units of \['heads.1.0'\] had no part in the batch .* They are not judged by it"): own = trained([0] * 6)
    alone = trained([0] * 6, skip=["heads.1"])
    assert all(torch.equal(own[n], alone[n]) for n in own)
    with pytest.warns(UserWarning) as told: trained([0, 0, 1, 1, 0, 0])
    assert sorted(str(w.message).split("'")[1] for w in told) == ["heads.0.0", "heads.1.0"] # each once


@pytest.mark.parametrize("method", WAITING)
def test_a_layer_that_was_replaced_is_named(method):
    model = mlp()
    optimizer = sgd(model)
    drop_in(method, model, optimizer, X, **WAITING[method])
    model[-1] = nn.Linear(*model[-1].weight.shape[::-1])
    optimizer.add_param_group(dict(params=[*model[-1].parameters()]))
    F.cross_entropy(model(X), Y).backward()
    with pytest.raises(InputError, match="no longer has all parameters that it had .* a layer was replaced"): optimizer.step()


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


class ActorAndCritic(nn.Module):
    def __init__(self): super().__init__(); self.body, self.actor, self.critic = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)
    def forward(self, x):
        h = self.body(x).relu()
        return self.actor(h), self.critic(h.detach())


class Scaled(nn.Module):
    def __init__(self): super().__init__(); self.body, self.out, self.side, self.scale = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3), nn.Linear(3, 3, bias=False)
    def forward(self, x):
        h = self.body(x).relu()
        return self.out(h) + self.scale(self.side(h.detach()))


AT_ZERO = { # model, input, what begins at 0
    "a head behind weights that are standardized": (lambda: nn.Sequential(StandardizedConv(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), StandardizedConv(8, 16, 3), nn.GroupNorm(2, 16), nn.ReLU(),
                                                                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)), torch.randn(4, 1, 8, 8), lambda m: m[-1]),
    "a branch that the graph does not see": (Scaled, torch.randn(4, 6), lambda m: m.scale),
    "a head that the graph does not see": (ActorAndCritic, torch.randn(4, 6), lambda m: m.critic),
}


@pytest.mark.parametrize("size", (None, 0., 1e-6)) # None: as PyTorch draws them
@pytest.mark.parametrize("name", AT_ZERO)
def test_weights_of_zero_hide_nothing(name, size):
    make, x, head = AT_ZERO[name]
    torch.manual_seed(0)
    model = make()
    if size is not None:
        for p in head(model).parameters(): p.data.mul_(size)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="does not do what its graph says"): units(model, x)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("make", (lambda: nn.PReLU(), lambda: nn.PReLU(8)))
def test_slopes_before_flattening(make):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 8, 3), make(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)), torch.randn(4, 1, 8, 8)
    group, = units(model, x)
    assert group.units == 8 and group.consumers[0].each == 9 and len(group.normalizers) == (model[1].num_parameters > 1)


def test_a_penalty_pulls_what_has_no_gradient():
    "As it does in the loss: a head that no step runs."
    def trained(dropped_in):
        torch.manual_seed(0)
        model = Heads()
        opt = torch.optim.Adam(model.parameters(), lr=.01)
        penalty = drop_in("l2", model, opt, strength=.1) if dropped_in else L2(model, .1)
        for _ in range(6):
            opt.zero_grad()
            (F.cross_entropy(model(X, 0), Y) + (0 if dropped_in else penalty())).backward()
            opt.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(trained(True), trained(False), rtol=0, atol=1e-6)


def test_what_is_called_twice_is_told_how():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.encoder, self.out = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(8, 3)
        def forward(self, x): return self.out(torch.cat([self.encoder(x), self.encoder(-x)], 1))
    with pytest.raises(InputError, match="'encoder.0' is called 2 times, where once, on all inputs together, would do"): units(Twice(), X[:, :6])


def test_the_utility_of_units_that_wait_stays():
    model = Heads()
    optimizer = sgd(model)
    handle = drop_in("cpr", model, optimizer, X, period=100)
    for which in (0, 0, 1):
        optimizer.zero_grad()
        F.cross_entropy(model(X, which), Y).backward()
        before = handle.parts[0].state["utility"].clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        changed = (handle.parts[0].state["utility"] != before).view(2, 8).any(1)
        assert changed.tolist() == [which == 0, which == 1]


class Trunk(nn.Module):
    "Layers of activations, then one of two heads or both."
    def __init__(self):
        super().__init__()
        self.trunk, self.heads = nn.Sequential(nn.Linear(10, 16), nn.ReLU()), nn.ModuleList(nn.Linear(16, 4) for _ in range(2))
    def forward(self, x, which=None):
        x = self.trunk(x)
        return self.heads[0](x) + self.heads[1](x) if which is None else self.heads[which](x)


@pytest.mark.parametrize("which", (0, 1))
def test_units_are_judged_whichever_head_reads_them(which):
    model = Trunk()
    with torch.no_grad(): model.trunk[0].bias[:4] = -99.
    optimizer = sgd(model)
    handle = ReDo(model, optimizer, X, period=1, threshold=0.)
    F.cross_entropy(model(X, which), Y).backward()
    optimizer.step()
    assert not handle.stack.waiting and (model.trunk[0].bias[:4] == 0).all()


class Skips(nn.Module):
    def __init__(self): super().__init__(); self.block, self.out = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10)), nn.Linear(10, 4)
    def forward(self, x, deep=True): return self.out(x + (self.block(x) if deep else 0))


@pytest.mark.parametrize("method", WAITING)
def test_all_units_may_wait(method):
    model = Skips()
    optimizer = sgd(model)
    handle = drop_in(method, model, optimizer, X, **WAITING[method])
    before = copy.deepcopy(model.block.state_dict())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(X, deep=False), Y).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    assert handle.steps == 4 and all(torch.equal(before[n], t) for n, t in model.block.state_dict().items())
    with pytest.raises(InputError, match="was not run before"):
        for _ in range(2): optimizer.step() # of which one ends a period


def test_an_empty_micro_batch_hides_no_full_one():
    model = Heads()
    optimizer = sgd(model)
    handle = ReDo(model, optimizer, X, period=1, threshold=1e9)
    for x in (X, X[:0]):
        model(x).sum().backward()
    optimizer.step()
    assert not handle.stack.waiting and not model.heads[0][2].weight.any()


def test_a_threshold_that_falls_renews_none_that_wait():
    model = Heads()
    optimizer = sgd(model)
    handle = drop_in("snr", model, optimizer, X)
    part = handle.parts[0]
    part.state["age"].fill_(60.)
    part.state["threshold"].fill_(10.)
    before = copy.deepcopy(model.heads[1].state_dict())
    F.cross_entropy(model(X, 0), Y).backward()
    with pytest.warns(UserWarning, match="heads.1.0"): optimizer.step()
    assert all(torch.equal(before[n], t) for n, t in model.heads[1].state_dict().items())


class TimeFirst(nn.Module):
    def __init__(self): super().__init__(); self.a, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
    def forward(self, x): return self.out(self.a(x).tanh().mean(0))


@pytest.mark.parametrize("asked", (dict(kernel=4), dict(readiness=4)))
def test_examples_that_are_not_first_are_noticed(asked):
    with pytest.raises(InputError, match=f"{next(iter(asked))}: it asks the model about some of the"):
        measure(TimeFirst(), torch.randn(4, 40, 3), torch.randn(40, 2), loss=F.mse_loss, units=[], **asked)


def test_a_kernel_of_a_number_and_of_nothing_that_learns():
    class OfNumber(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.Linear(3, 2)
        def forward(self, scale): return self.a(torch.ones(1, 3) * scale)
    assert measure(OfNumber(), torch.tensor(2.), units=[], kernel=2)["kernel_rank"] == 1
    detached = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    detached.forward = lambda x: nn.Sequential.forward(detached, x).detach()
    assert math.isnan(measure(detached, torch.randn(4, 6), units=[], kernel=2)["kernel_rank"])


def test_outputs_without_a_dimension_have_readiness_and_a_kernel():
    class Squeezed(nn.Module):
        def __init__(self, outputs): super().__init__(); self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, outputs))
        def forward(self, x): return self.net(x).squeeze()
    found = measure(Squeezed(1), X[:8], torch.randn(8), loss=F.mse_loss, readiness=2, kernel=4)
    assert 0 < found["readiness"] <= 1 and 1 <= found["kernel_rank"] <= 4
    assert measure(Squeezed(3), X[:1], kernel=4)["kernel_rank"] == 1


class Lies(nn.Module):
    "A part of the output comes from units that the graph does not see."
    def __init__(self, std):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
        for p in self.parameters(): nn.init.normal_(p, std=std) if p.dim() > 1 else nn.init.zeros_(p)
        self.beside = nn.Buffer(torch.randn(32, 3) * std)
    def forward(self, x):
        h = self.net[:4](x)
        return self.net[4](h) + h.detach() @ self.beside


@pytest.mark.parametrize("std", (.1, .02, .005, .001))
def test_small_weights_hide_no_lie(std):
    torch.manual_seed(0)
    with pytest.raises(InputError, match="does not do what its graph says"): units(Lies(std), X)


class Wants(nn.Module):
    "A small number that has to be positive, or a parameter that is none."
    def __init__(self, start, how): super().__init__(); self.a, self.out, self.scale, self.how = nn.Linear(10, 16), nn.Linear(16, 3), nn.Parameter(start), how
    def forward(self, x): return self.how(self.out(F.relu(self.a(x))), self.scale)


WANTS = dict(root=(torch.full((3,), 1e-3), lambda y, s: y * s.sqrt()), log=(torch.full((3,), 1e-3), lambda y, s: y + s.log()), deviation=(torch.full((3,), .005), lambda y, s: torch.distributions.Normal(y, s).mean),
             factor=(torch.full((3,), 1e-3), lambda y, s: y @ torch.linalg.cholesky(torch.diag(s))), index=(torch.zeros(3), lambda y, s: y[:, (s * 10).long()]))


@pytest.mark.parametrize("name", WANTS)
def test_what_a_model_wants_of_small_numbers_is_left_to_it(name):
    model = Wants(*WANTS[name])
    if name == "index": model.scale.requires_grad_(False)
    assert [g.name for g in units(model, X)] == ["a"]


def test_an_attribute_of_a_slope_may_be_used():
    class Used(nn.Module):
        def __init__(self): super().__init__(); self.a, self.act, self.out = nn.Linear(10, 16), nn.PReLU(), nn.Linear(16, 3)
        def forward(self, x): return self.out(self.act(self.a(x))) * (1 + self.act.weight.square()) / self.act.num_parameters
    model = Used()
    assert [g.name for g in units(model, X)] == ["a"] and type(model.act) is nn.PReLU


def test_what_was_seen_before_a_skipped_step_is_forgotten():
    torch.manual_seed(0)
    model = Heads()
    optimizer, scaler = torch.optim.Adam(model.parameters(), foreach=True), torch.amp.GradScaler("cpu")
    handle = drop_in("continual_backprop", model, optimizer, X, replacement_rate=.1, maturity=1)
    def step(x, which):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x, which), Y)).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler.step(optimizer)
        scaler.update()
    step(X, None)
    step(X * torch.inf, None)
    step(X, 0)
    assert handle.steps == 2 and handle.stack.waiting == {"heads.1.0"}
    step(X, None)
    assert all(t.isfinite().all() for t in (*model.state_dict().values(), *handle.parts[0].state.values()))


def test_embeddings_are_named():
    for model in (nn.Sequential(nn.Embedding(10, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Sequential(nn.EmbeddingBag(10, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))):
        assert "is an embedding" in units(model, torch.randint(10, (4, 5))).left_out["0"]


def test_gradients_by_example_are_not_watched():
    model = mlp()
    optimizer = sgd(model)
    ReDo(model, optimizer, X, period=1, threshold=.1)
    params = {n: p.detach() for n, p in model.named_parameters()}
    def each(): torch.func.vmap(torch.func.grad(lambda p, x, y: F.cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])), (None, 0, 0))(params, X, Y)
    F.cross_entropy(model(X), Y).backward()
    each()
    optimizer.step()


def test_renewal_before_a_pass_wants_a_pass():
    model = mlp()
    optimizer = sgd(model)
    ReDo(model, optimizer, X, period=1, threshold=.1, renewed="before_next_step")
    F.cross_entropy(model.forward(X), Y).backward()
    with pytest.raises(InputError, match=r"call model\(x\), and no function of it"): optimizer.step()


class TwoNames(nn.Module):
    def __init__(self, dropout=0.):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.drop = nn.Linear(10, 8), nn.Linear(8, 4), nn.Dropout(dropout)
        self.net = nn.Sequential(self.first, nn.ReLU(), self.drop, self.last)
    def forward(self, x): return self.net(x.flatten(1))


def test_a_module_that_has_two_names():
    model = TwoNames()
    assert [g.units for g in units(model, X)] == [8] and 0 <= measure(model, X)["dead_share"] <= 1
    optimizer = sgd(model)
    ReDo(model, optimizer, X, period=1, threshold=.1)
    for _ in range(3): step(model, optimizer)
    tied = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    tied[2].weight = tied[0].weight
    with pytest.raises(InputError, match="is tied to"): units(tied, X)


@pytest.mark.parametrize("method, hyper", [("plain", {}), ("redo", dict(period=[2], threshold=[.1])), ("head_reset", {})])
def test_a_module_that_has_two_names_in_a_cohort(method, hyper):
    c = Cohort(grid(method, [0, 1], [1e-2], **hyper), (1, 2, 5), 4, method, network_name="module", factory=lambda shape, classes: TwoNames(.5))
    assert torch.isfinite(c.theta).all()


def test_an_input_that_the_model_changes():
    class InPlace(nn.Sequential):
        def forward(self, x): return super().forward(x.div_(2.))
    x = X.clone()
    model = InPlace(*mlp())
    assert len(units(model, x)) == 2
    measure(model, x, Y)
    assert torch.equal(x, X)


def test_anchors_of_a_compiled_model():
    model = mlp()
    reg = L2Init(torch.compile(model), 1., anchor=model.state_dict())
    assert reg() == 0


def test_a_model_that_takes_gradients_in_its_forward():
    class Physics(nn.Sequential):
        def forward(self, x):
            x = x.requires_grad_(True)
            u = super().forward(x)
            return torch.cat([u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]], 1)
    assert measure(Physics(*mlp()), X, units=[])["srank"] > 0
    class Asks(Physics): # for an input that its user has prepared
        def forward(self, x):
            u = nn.Sequential.forward(self, x)
            return torch.cat([u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]], 1)
    assert measure(Asks(*mlp()), X.clone().requires_grad_(), units=[])["srank"] > 0


@pytest.mark.parametrize("model, says", [(nn.Sequential(nn.LazyLinear(4)), "has no shape yet"), (nn.Linear(10, 4, device="meta"), "on the device 'meta'")])
def test_parameters_that_are_not_there(model, says):
    for do in (lambda: measure(model, X, units=[]), lambda: units(model, X), lambda: ShrinkPerturb(model, sgd(model), shrink=.1, noise=.1)):
        with pytest.raises(InputError, match=says): do()


class NoRate(torch.optim.Optimizer):
    def __init__(self, params): super().__init__(params, {})
    @torch.no_grad()
    def step(self, closure=None): pass


def ends(**batches):
    model = mlp()
    drop_in("ewc", model, sgd(model), importance=1.).task_ends(**batches)


def with_no_rate():
    model = mlp()
    optimizer = NoRate(list(model.parameters()))
    drop_in("upgd", model, optimizer, noise=.1)
    step(model, optimizer)


def pulled(folder, saved, name="anchor.pt"):
    if isinstance(saved, bytes): (folder / name).write_bytes(saved)
    else: torch.save(saved, folder / name)
    return L2Init(mlp(), 1., anchor=folder / name)


def no(out, y): raise AssertionError("no")


WRONG = {
    "cannot be read as a checkpoint of tensors": lambda f: pulled(f, b"eabc" * 10),
    "Weights only load failed": lambda f: pulled(f, mlp()),
    "holds a list": lambda f: pulled(f, [1]),
    "'0.weight' is a str in anchor": lambda f: pulled(f, {"0.weight": "a"}),
    "x.safetensors' cannot be read": lambda f: pulled(f, b"abc", "x.safetensors"),
    "a function of name and parameter is needed": lambda f: L2Init(mlp(), 1., skip=["0"]),
    "Did you mean 'redo'": lambda f: drop_in(["redo"], mlp(), None),
    "anchors are of another model": lambda f: measure(mlp(), X, anchors={"0.weight": 3}),
    "train = 'no'": lambda f: measure(mlp(), X, train="no"),
    "AssertionError: no": lambda f: measure(mlp(), X, Y, loss=no),
    "following = 5": lambda f: ends(ended=[(X, Y)], following=5),
    "ended = 5": lambda f: ends(ended=5),
    "labels of shape \\(1,\\) from 100 to 100": lambda f: ends(ended=[(X, Y + 100)]),
    "NoRate has no learning rate": lambda f: with_no_rate(),
    "no parameters to be measured": lambda f: measure(nn.Flatten(), X),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_is_said(says, tmp_path):
    with pytest.raises(InputError, match=says): WRONG[says](tmp_path)


@pytest.mark.parametrize("name", ("state_dict", "model_state_dict", "model"))
def test_a_checkpoint_with_more_than_weights(name, tmp_path):
    assert pulled(tmp_path, {name: mlp().state_dict(), "epoch": 3})() == 0


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.memory, self.second, self.last = nn.Linear(10, 12), kind(12, 16, batch_first=True), nn.Linear(16, 14), nn.Linear(14, 4)
    def forward(self, x): return self.last(self.second(self.memory(self.first(x).relu())[0]).relu())


@pytest.mark.parametrize("kind", (nn.LSTM, nn.GRU, nn.RNN))
def test_units_that_feed_a_recurrent_layer_can_be_left_out(kind):
    x = torch.randn(5, 7, 10)
    with pytest.raises(InputError, match="not understood: 'first'"): units(Recurrent(kind), x)
    assert [g.name for g in units(Recurrent(kind), x, skip=["first"])] == ["second"]


HOOKED = [("shrink_perturb", dict(shrink=.01, noise=.1)), ("redo", dict(example=X, period=2, threshold=.5)), ("l2_init", dict(strength=.1)),
          ("continual_backprop", dict(example=X, replacement_rate=.2, maturity=1)), ("upgd", dict(noise=.01, utility_decay=.9))]


@pytest.mark.parametrize("method, hyper", HOOKED)
def test_a_step_that_is_compiled_does_the_same(method, hyper):
    after = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        drop_in(method, model, optimizer, **hyper)
        torch._dynamo.reset()
        taken = wrap(optimizer.step)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            taken()
        after.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(*after)


@pytest.mark.parametrize("method, hyper", HOOKED)
def test_a_copy_of_all_goes_on_by_itself(method, hyper):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    handle = drop_in(method, model, optimizer, **hyper)
    step(model, optimizer)
    others = copy.deepcopy((model, optimizer, handle))
    for _ in range(3): step(*others[:2])
    assert (handle.steps, others[2].steps) == (1, 4)
    for _ in range(3): step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), others[0].parameters()))
    others[2].remove()
    assert not copy.deepcopy(others)[2].hooks


def test_a_copy_of_a_pull_pulls_the_copy():
    model = mlp()
    reg, optimizer = L2Init(model, 1.), sgd(model)
    pull = reg.attach(optimizer)
    others = copy.deepcopy((model, optimizer, reg, pull))
    for _ in range(3):
        step(model, optimizer)
        step(*others[:2])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), others[0].parameters()))
    with pytest.raises(InputError, match="attached to this optimizer already"): others[2].attach(others[1])


def test_a_copy_of_a_model_that_holds_its_handle_is_without_the_method():
    model = mlp()
    optimizer = sgd(model)
    model.handle = ReDo(model, optimizer, example=X, period=1, threshold=.5)
    other = copy.deepcopy(model)
    assert model.handle.hooks and not other.handle.hooks
    step(other, sgd(other))


class AsksTwice(torch.optim.SGD):
    "As optimizers that look ahead: the gradient that counts is that of the second call. `above`: what the class above gets."
    above = False
    def step(self, closure):
        with torch.enable_grad(): closure()
        if self.above: return super().step(closure)
        with torch.enable_grad(): loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("above", (False, True))
def test_a_penalty_is_in_each_gradient_that_a_closure_gives(above):
    after = []
    for hooked in (False, True):
        model = mlp()
        optimizer = AsksTwice(model.parameters(), .1)
        optimizer.above = above
        handle = drop_in("l2", model, optimizer, strength=.5) if hooked else None
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            if not hooked: loss = loss + .25 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            return loss
        for _ in range(3): optimizer.step(closure)
        after.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(*after)
    assert handle.steps == 3


class ChangesItself(nn.Module):
    "`how` a pass changes parameters: as MoCo's key encoder, as weights that are normalized in training, or by others."
    def __init__(self, how):
        super().__init__()
        self.how, self.query, self.key = how, nn.Linear(10, 4), nn.Linear(10, 4)
        self.key.requires_grad_(how != "follows")
    @torch.no_grad()
    def change(self):
        if self.how == "follows": self.key.weight.lerp_(self.query.weight, .1)
        elif self.how == "data": self.key.weight.data = F.normalize(self.key.weight.data, dim=1)
        elif self.how == "replaced": self.key.weight = nn.Parameter(F.normalize(self.key.weight, dim=1))
    def forward(self, x):
        if self.training or self.how == "follows": self.change()
        return self.query(x) * self.key(x)


@pytest.mark.parametrize("how", ("follows", "data", "replaced"))
def test_a_model_that_changes_its_weights_is_left_as_it_is(how):
    torch.manual_seed(0)
    model = ChangesItself(how)
    own, before = list(model.parameters()), copy.deepcopy(model.state_dict())
    for train in (False, True): measure(model, X, Y, train=train, units=[])
    assert all(a is b for a, b in zip(model.parameters(), own))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    F.cross_entropy(model(X), Y).backward()


def test_a_measurement_between_pass_and_gradient_does_no_harm():
    model = mlp()
    loss = F.cross_entropy(model(X), Y)
    measure(model, X, Y)
    loss.backward()


class Gained(nn.Linear):
    def __init__(self, i, o): super().__init__(i, o); self.gain = nn.Parameter(torch.ones(o))
    def forward(self, x): return super().forward(x) * self.gain


def test_layers_with_parameters_beside_weight_and_bias_are_refused(): # a unit that is dead by its gain would stay so
    for model in (nn.Sequential(Gained(6, 16), nn.ReLU(), nn.Linear(16, 4)), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Gained(16, 4))):
        with pytest.raises(InputError, match="has parameters of its own, as 'gain', beside weight and bias"): units(model, torch.randn(8, 6))


@pytest.mark.parametrize("stride", (1, 2))
def test_a_constant_unit_s_part_moves_into_the_bias_of_a_transposed_convolution(stride):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, stride, stride)).train(), torch.randn(9, 3, 8, 8)
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    ContinualBackprop(model, opt, example=x, replacement_rate=.25, maturity=0, decay=0.)
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 1.
        model[2].weight[:2] *= .01
        before = model(x).mean((0, 2, 3))
    model(x).sum().backward()
    opt.step()
    assert not torch.equal(model[0].weight[:2], torch.zeros(2, 3, 1, 1)) # renewed
    assert torch.allclose(model(x).mean((0, 2, 3)), before, atol=1e-6)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.route, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(4))
    def forward(self, x):
        gates = self.route(x).softmax(1)
        out, chosen = torch.zeros(len(x), 3), gates.argmax(1)
        for i, expert in enumerate(self.experts):
            at = (chosen == i).nonzero()[:, 0]
            out = out.index_add(0, at, expert(x[at]) * gates[at, i:i + 1])
        return out


def test_experts_that_a_batch_does_not_ask():
    torch.manual_seed(0)
    model, few = Experts(), torch.randn(2, 6)
    found = units(model, torch.randn(64, 6))
    assert len(found) == 4
    of_few = units(model, few)
    assert 0 < len(of_few) < 4 and {f"experts.{i}.0" for i in range(4)} == {*(g.name for g in of_few), *(n for n in of_few.left_out if n != "route")}
    asked = [g for g in found if g.name in {g.name for g in of_few}]
    assert measure(model, few, units=found)["dead_share"] == measure(model, few, units=asked)["dead_share"]
    with pytest.raises(InputError, match="The example does not reach"): ReDo(model, torch.optim.Adam(model.parameters()), example=few, period=1, threshold=0.)


@pytest.mark.parametrize("method", WAITING)
def test_experts_that_a_batch_does_not_ask_wait(method):
    torch.manual_seed(0)
    model, few = Experts(), torch.randn(2, 6)
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    drop_in(method, model, opt, example=torch.randn(64, 6), **WAITING[method])
    asked, before = {*model.route(few).argmax(1).tolist()}, copy.deepcopy(model.experts.state_dict())
    for _ in range(6):
        opt.zero_grad()
        F.cross_entropy(model(few), torch.tensor([0, 1])).backward()
        model.route.weight.grad.zero_(), model.route.bias.grad.zero_() # the same experts in each step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step()
    same = {i: all(torch.equal(t, before[n]) for n, t in model.experts.state_dict().items() if n.startswith(f"{i}.")) for i in range(4)}
    assert same == {i: i not in asked for i in range(4)} and len(asked) < 4


def test_groups_of_another_model_are_refused():
    wide, narrow = (nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 3)) for n in (9, 8))
    groups = units(wide, torch.randn(4, 6)).groups
    with pytest.raises(InputError, match="are of another model: '0' is not like that here"): ReDo(narrow, torch.optim.Adam(narrow.parameters()), units=groups, period=1, threshold=0.)
    with pytest.raises(InputError, match="a group is there twice"): ReDo(wide, torch.optim.Adam(wide.parameters()), units=groups * 2, period=1, threshold=0.)


@pytest.mark.parametrize("made_of", (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal))
def test_linear_layers_whose_weight_is_made_of_others(made_of):
    torch.manual_seed(0)
    model, x = nn.Sequential(made_of(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 6)
    opt = torch.optim.Adam(model.parameters())
    drop_in("shrink_perturb", model, opt, shrink=.01, noise=.01)
    model(x).sum().backward()
    opt.step()
    with pytest.raises(InputError, match="the weights of '0' are made of others"): ReDo(model, opt, example=x, period=1, threshold=0.)


class Multiplied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Parameter(torch.randn(10, 3))
    def forward(self, x): return F.relu(self.b(F.relu(self.a(x)))) @ self.out


def test_a_matrix_that_no_layer_has_is_named(): # b's units end at it
    found = units(Multiplied(), torch.randn(8, 6))
    assert [g.name for g in found] == ["a"] and "is a parameter of no layer; units that begin or end at it are not looked for" in found.left_out["out"]


def test_an_anchor_of_a_model_that_was_wrapped():
    model = nn.Sequential(nn.Linear(4, 3))
    wrapped = {f"module.{n}": v for n, v in model.state_dict().items()}
    with pytest.raises(InputError, match="'0.weight' is not in anchor, which has 'module.0.weight': take 'module.' off its names"): L2Init(model, 1., anchor=wrapped)


def test_a_state_with_fewer_parts_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    handle = ReDo(model, torch.optim.Adam(model.parameters()), example=torch.randn(4, 6), period=1, threshold=0.)
    with pytest.raises(InputError, match="The state is of 0 parts, and redo has 1"): handle.load_state_dict(handle.state_dict() | dict(parts=[]))
