"""What is given to an entrance and cannot be used is one clear message: units, drop-ins, measurements, cohorts."""
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from l2init.cohorts import Cohort
from l2init.drop_in import ReDo, drop_in, measure
from l2init.internals.core import InputError
from l2init.methods import grid
from l2init.networks import network
from l2init.regularizers import L2Init
from l2init.units import NOT_REACHED, Slopes, by_hand, units

X, Y = torch.randn(16, 10), torch.randint(3, (16,))


def mlp(): return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def adam(model): return torch.optim.Adam(model.parameters(), lr=.01)


def hooked(method, model=None, optimizer=None, **options):
    model = model or mlp()
    return drop_in(method, model, optimizer or adam(model), **options)


def train(model, optimizer, x=X, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), Y).backward()
        optimizer.step()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.inside, self.head = nn.Linear(10, 9), nn.Sequential(nn.Linear(9, 8), nn.ReLU()), nn.Linear(8, 3)
        self.reentrant = reentrant
    def forward(self, x): return self.head(checkpoint(self.inside, self.first(x), use_reentrant=self.reentrant))


class Complex(nn.Module):
    def __init__(self): super().__init__(); self.turn, self.net = nn.Parameter(torch.randn(10, 10, dtype=torch.cfloat)), mlp()
    def forward(self, x): return self.net((x.to(torch.cfloat) @ self.turn).abs())


class Words(nn.Module):
    def __init__(self, **options): super().__init__(); self.embed, self.net = nn.Embedding(20, 10, **options), mlp()
    def forward(self, ids): return self.net(self.embed(ids).mean(1))


class Bilinear(nn.Module):
    def __init__(self): super().__init__(); self.a, self.both, self.head = nn.Linear(10, 8), nn.Bilinear(8, 8, 6), nn.Linear(6, 3)
    def forward(self, x):
        h = self.a(x).relu()
        return self.head(self.both(h, h).relu())


class Branch(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(10, 3)
    def forward(self, x): return self.a(x) if x.sum() > 0 else self.a(-x)


class Recurrent(nn.Module):
    def __init__(self, out=False): super().__init__(); self.gru, self.head, self.out = nn.GRU(10, 5, batch_first=True), nn.Linear(5, 3), out
    def forward(self, x):
        h = torch.zeros(len(x), 5) * x.mean().item() if self.out else self.gru(x[:, None])[0][:, 0]
        return self.head(h)


def old(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning) # old, but in use
        return nn.Sequential(norm(nn.Linear(10, 8)), nn.ReLU(), nn.Linear(8, 3))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(mlp())


def of_modules(factory, shape=(10,), classes=3):
    return Cohort(grid("plain", [0, 1], [.01]), shape, classes, "plain", "adam", "module", factory=factory)


def cohort(shape=(10,), classes=3): return Cohort(grid("plain", [0], [.01]), shape, classes, "plain")


def with_column(name, value):
    learners = grid("redo", [0], [.01], period=[5], threshold=[.1])
    learners[name] = value
    return Cohort(learners, (10,), 3, "redo")


def in_eval_mode():
    model = mlp().eval()
    opt = adam(model)
    ReDo(model, opt, X, period=1, threshold=.1)
    train(model, opt)


CASES = { # what is done, what is said
    "no example": (lambda: units(mlp(), None), "cannot be run on the example, of type NoneType: TypeError"),
    "examples with labels": (lambda: units(mlp(), (X, Y)), r"tuple of a tensor \(16, 10\) of torch.float32, a tensor \(16,\) .*3 were given. Its parts are taken for the model's arguments"),
    "a list of examples": (lambda: units(mlp(), [X, X]), "list of a tensor .*Its parts are taken for"),
    "an array": (lambda: units(mlp(), X.numpy()), "of type ndarray"),
    "another type": (lambda: units(mlp(), X.double()), "of torch.float64: RuntimeError"),
    "another shape": (lambda: measure(mlp(), X[:, :7]), r"a tensor \(16, 7\) .*shapes cannot be multiplied"),
    "another shape, without units": (lambda: measure(mlp(), X[:, :7], units=[]), r"a tensor \(16, 7\)"),
    "another shape, by hand": (lambda: by_hand(mlp(), X[:, :7], ["0"], ["2"]), r"a tensor \(16, 7\)"),
    "a single input": (lambda: units(mlp(), X[0]), "is a single input, .*a batch is needed"),
    "a single image": (lambda: units(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(3, 9, 9)), "is a single input"),
    "no examples": (lambda: units(mlp(), X[:0]), r"The example is empty: a tensor \(0, 10\)"),
    "no examples to measure": (lambda: measure(mlp(), X[:0], units=[]), "The example is empty"),
    "skip nothing": (lambda: units(mlp(), X, skip=None), "skip = None: a list of names"),
    "skip a number": (lambda: units(mlp(), X, skip=[1]), r"skip = \[1\]: a list of names"),
    "a scripted model": (lambda: units(scripted(), X), "torch.jit made cannot be looked into"),
    "a scripted model to measure": (lambda: measure(scripted(), X), "torch.jit made"),
    "a method for a scripted model": (lambda: hooked("l2", scripted(), strength=.1), "torch.jit made"),
    "a checkpoint that enters again": (lambda: units(Checkpointed(True), X), "A checkpoint needs use_reentrant=False"),
    "a layer of two inputs": (lambda: units(Bilinear(), X), "'a': the parameter 'both.weight' is no layer whose"),
    "old weight norm": (lambda: units(old(nn.utils.weight_norm), X), "the weights of '0' are made of others"),
    "old spectral norm": (lambda: units(old(nn.utils.spectral_norm), X), "the weights of '0' are made of others"),
    "fewer labels": (lambda: measure(mlp(), X, Y[:5]), r"batch_size \(5\). The model gives a tensor \(16, 3\) .*y is a tensor \(5,\)"),
    "labels in a column": (lambda: measure(mlp(), X, Y[:, None]), r"The loss cannot be computed.*y is a tensor \(16, 1\)"),
    "labels of 32 bits": (lambda: measure(mlp(), X, Y.int()), "The loss cannot be computed.*of torch.int32"),
    "labels in a list": (lambda: measure(mlp(), X, Y.tolist()), "The loss cannot be computed.*y is a list"),
    "labels beyond the classes": (lambda: measure(mlp(), X, Y + 3), "The loss cannot be computed: IndexError"),
    "a loss that gives nothing": (lambda: measure(mlp(), X, Y, loss=lambda out, y: None), "The loss gives a NoneType, but a tensor"),
    "a loss that gives a number": (lambda: measure(mlp(), X, Y, loss=lambda out, y: 1.), "The loss gives a float, but a tensor"),
    "a loss without gradients": (lambda: measure(mlp(), X, Y, loss=lambda out, y: F.cross_entropy(out, y).detach()), "does not require grad"),
    "anchors that are a model": (lambda: measure(mlp(), X, anchors=mlp()), "anchors is a Sequential: a state dict"),
    "anchors of another shape": (lambda: measure(mlp(), X, anchors={"0.weight": torch.zeros(3)}), r"another model: \(3,\) for a parameter of shape \(8, 10\)"),
    "an anchor that is a model": (lambda: L2Init(mlp(), .1, anchor=mlp()), "anchor is a Sequential: a state dict"),
    "a strength of double precision": (lambda: L2Init(mlp(), 1e39), r"L2Init: strength = 1e\+39: at most 3.4e\+38"),
    "a drop-in's, too": (lambda: hooked("l2", strength=1e39), r"method l2: strength = 1e\+39: at most 3.4e\+38"),
    "a period that single precision rounds": (lambda: hooked("redo", example=X, period=2**24 + 1, threshold=.1), "period = 16777217: .*16777216"),
    "a name for an optimizer": (lambda: drop_in("l2", mlp(), "adam", strength=.1), "a torch.optim.Optimizer is needed"),
    "no state": (lambda: hooked("l2", strength=.1).load_state_dict(None), r"A dictionary of state_dict\(\) is needed, not a NoneType"),
    "sparse gradients": (lambda: hooked("l2", Words(sparse=True), strength=.1), "'embed' makes sparse gradients"),
    "complex weights": (lambda: hooked("l2", Complex(), strength=.1), "The parameter 'turn' is complex"),
    "no pass in training mode": (in_eval_mode, r"eval mode, .*call model.train\(\)"),
    "a negative period": (lambda: with_column("period", -3), "method redo: period = -3"),
    "a period of 0": (lambda: with_column("period", 0), "method redo: period = 0"),
    "a threshold that is no number": (lambda: with_column("threshold", float("nan")), "method redo: threshold = nan"),
    "an unknown word": (lambda: with_column("redraw", "again"), "method redo: redraw = 'again'"),
    "learners in a list": (lambda: Cohort([dict(seed=0)], (10,), 3, "plain"), "Learners are a table, .*not a list"),
    "a number for a shape": (lambda: cohort(10), "shape = 10: .*valid tuple"),
    "a negative size": (lambda: cohort((-10,)), "shape.0 = -10"),
    "a word for a size": (lambda: cohort(("a",)), "shape.0 = 'a'"),
    "no classes": (lambda: cohort(classes=0), "classes = 0"),
    "classes that are no whole number": (lambda: cohort(classes=3.), "classes = 3.0: .*integer"),
    "a model for a factory": (lambda: of_modules(mlp()), r"The factory cannot make a module for shape = \(10,\) and classes = 3: TypeError"),
    "a factory without arguments": (lambda: of_modules(mlp.__call__), "The factory cannot make a module"),
    "a factory of scripted models": (lambda: of_modules(lambda shape, classes: scripted()), "torch.jit made"),
    "a checkpoint in a cohort": (lambda: of_modules(lambda shape, classes: Checkpointed(False)), "cannot be stacked .*torch.utils.checkpoint"),
    "a branch in a cohort": (lambda: of_modules(lambda shape, classes: Branch()), r"cannot be stacked .*branches that depend on values\.$"),
    "a recurrent layer in a cohort": (lambda: of_modules(lambda shape, classes: Recurrent()), "aten::gru.*knows no recurrent layers"),
    "a number taken out in a cohort": (lambda: of_modules(lambda shape, classes: Recurrent(out=True)), "knows no .*item"),
}


@pytest.mark.parametrize("of", CASES)
def test_what_cannot_be_used_is_said(of):
    do, says = CASES[of]
    with pytest.raises(InputError, match=says): do()


def test_numbers_of_numpy_are_numbers():
    learners = grid("redo", [np.int64(1)], [np.float64(.01)], period=[np.int64(5)], threshold=[np.float32(.5)])
    assert Cohort(learners, (np.int64(10),), np.int64(3), "redo", hidden=[np.int64(7)]).theta.shape[1] == 10 * 7 + 7 + 7 * 3 + 3
    assert hooked("redo", example=X, seed=np.int64(3), period=np.int64(5), threshold=np.float32(.5)).stack.seeds.item() == 3
    assert L2Init(mlp(), np.float64(.1)).hyper == dict(strength=.1)
    assert network("mlp", [10], 3, hidden=[7]).size == 10 * 7 + 7 + 7 * 3 + 3


class ByName(nn.Module):
    def __init__(self): super().__init__(); self.a, self.act, self.b = nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
    def forward(self, x): return self.b(input=self.act(self.a(input=x)))


def test_layers_that_are_called_by_name():
    model = ByName()
    other = nn.Sequential(model.a, model.act, model.b)
    assert measure(model, X, Y) == measure(other, X, Y)
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    ReDo(model, opt, X, period=1, threshold=100.)
    train(model, opt, steps=1)
    assert (model.b.weight == 0).all() # all units were renewed
    made = Cohort(grid("plain", [0], [.01]), (10,), 3, "plain", "adam", "module", factory=lambda shape, classes: ByName())
    assert made.network.activations(made.params, X[None])[1].shape == (1, 16, 8) # its features


def test_an_rms_norm_between_units_is_theirs():
    model = nn.Sequential(nn.Linear(10, 8), nn.RMSNorm(8), nn.ReLU(), nn.Linear(8, 3))
    group, = units(model, X)
    assert [p.module for p in group.normalizers] == ["1"]


def test_slopes_of_renewed_units_are_as_at_the_start():
    model = nn.Sequential(nn.Linear(10, 8), nn.PReLU(8, init=.1), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0., momentum=.9)
    handle = ReDo(model, opt, X, period=2, threshold=.01)
    slopes, = handle.stack.network.found.groups[0].normalizers
    assert isinstance(slopes, Slopes) and slopes.first == pytest.approx(.1)
    with torch.no_grad():
        model[1].weight.fill_(.7)
        model[0].weight[:3] = model[0].bias[:3] = 0
    train(model, opt, steps=2)
    assert torch.allclose(model[1].weight, torch.tensor([.1] * 3 + [.7] * 5))
    moved = opt.state[model[1].weight]["momentum_buffer"] != 0
    assert moved.tolist() == [False] * 3 + [True] * 5
    shared = nn.Sequential(nn.Linear(10, 8), nn.PReLU(), nn.Linear(8, 3)) # one slope for all units, which nobody renews
    assert units(shared, X).groups[0].normalizers == ()


PADDED = dict(shrink_perturb=dict(shrink=.1, noise=.1), l2_init_resampled=dict(strength=.1), upgd=dict(noise=.1), full_reset={})


@pytest.mark.parametrize("method", PADDED)
def test_the_padding_row_of_an_embedding_stays(method):
    model, ids = Words(padding_idx=2), torch.randint(20, (16, 4))
    with torch.no_grad(): model.embed.weight[2] = 5. # somebody's own
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    before, handle = model.embed.weight.clone(), hooked(method, model, opt, **PADDED[method])
    train(model, opt, ids)
    handle.task_ends()
    assert (model.embed.weight[2] == 5).all() and (model.embed.weight != before).any(1).sum() > 15


def test_the_average_of_a_renewed_weight_is_the_weight():
    model = mlp()
    opt = torch.optim.ASGD(model.parameters(), lr=.01, t0=0)
    ReDo(model, opt, X, period=3, threshold=100.)
    train(model, opt, steps=3)
    for m in (model[0], model[2], model[4]): assert torch.equal(opt.state[m.weight]["ax"], m.weight)


def test_a_resumed_method_draws_as_the_first_one_did():
    hyper = dict(shrink=.1, noise=.1)
    first = hooked("shrink_perturb", seed=1, **hyper)
    again = hooked("shrink_perturb", seed=2, **hyper)
    again.load_state_dict(first.state_dict())
    assert again.stack.seeds.tolist() == [1]


@pytest.mark.parametrize("norm", (nn.utils.weight_norm, nn.utils.spectral_norm))
def test_what_makes_a_weight_is_no_weight(norm): # its own g and v, which methods for layers leave as they are
    model = old(norm)
    made = [w for w in hooked("weight_clipping", model, bound=.01).stack.network.weights if w.parameter.startswith("weight_")]
    assert made and {w.kind for w in made} == {"other"}


WITHOUT = dict(layer=nn.LayerNorm(8, elementwise_affine=False), rms=nn.RMSNorm(8, elementwise_affine=False), batch=nn.BatchNorm1d(8, affine=False))


@pytest.mark.parametrize("name", WITHOUT)
def test_norms_without_parameters(name):
    model = nn.Sequential(nn.Linear(10, 8), WITHOUT[name], nn.ReLU(), nn.Linear(8, 3))
    group, = units(model, X)
    assert [p.module for p in group.normalizers] == (["1"] if name == "batch" else []) # running statistics are a unit's
    opt = torch.optim.SGD(model.parameters(), lr=0.)
    ReDo(model, opt, X, period=1, threshold=100.)
    train(model, opt, steps=1)
    assert (model[3].weight == 0).all()
    if name == "batch": assert (model[1].running_mean == 0).all() and (model[1].running_var == 1).all()
    else:
        with pytest.raises(InputError, match="the norm '1' has no parameters"): by_hand(model, X, ["0"], ["3"], ["1"])


FAMILIES = dict(convnext_tiny=18, efficientnet_b0=33, googlenet=57, regnet_y_400mf=53, squeezenet1_1=25) # groups of units


@pytest.mark.parametrize("name", FAMILIES)
def test_units_of_torchvision_s_models(name):
    options = dict(googlenet=dict(aux_logits=True, init_weights=False)).get(name, {})
    found = units(getattr(torchvision.models, name)(num_classes=10, **options), torch.randn(2, 3, 64, 64))
    assert len(found) == FAMILIES[name]
    unseen = [n for n, why in found.left_out.items() if why == NOT_REACHED]
    assert unseen == (["aux1", "aux2"] if name == "googlenet" else []) # heads that are there in training only


def test_channels_that_are_shuffled_are_refused():
    with pytest.raises(InputError, match="The model's graph cannot be followed"):
        units(torchvision.models.shufflenet_v2_x0_5(num_classes=10), torch.randn(2, 3, 64, 64))


class Flips(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(10, 3)
    def forward(self, x): return self.a(x.flip(1) if random.random() < .5 else x)


class Infinite(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(10, 3)
    def forward(self, x): return self.a(x) * float("inf") * 0


def test_a_module_that_draws_by_itself_is_seen_to(): # the numbers of seed 1: below .5 once, then above
    random.seed(1)
    with pytest.raises(InputError, match="something else each time"): of_modules(lambda shape, classes: Flips())
    assert of_modules(lambda shape, classes: Infinite()).theta.isfinite().all() # it diverges, and is counted as such
