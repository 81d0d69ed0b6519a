"""The fast form of a step against the readable one, for every method, network and optimizer."""
import pytest
import torch
from conftest import hyper_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2init import resets
from l2init.cohorts import Cohort
from l2init.internals import engines, random_numbers
from l2init.internals.core import InputError, forget
from l2init.internals.engines import ENGINES, LayersInCache, Recorded, Recording, engine
from l2init.methods import Method, grid, methods
from l2init.networks import Network
from l2init.optimizers import SGD, optimizers
from l2init.regularizers import L1InitPenalty, L2InitPenalty
from l2init.resets import ContinualBackprop, ShrinkPerturb
from l2init.streams import stream
from l2init.training import train


def trained(method, fast, network="mlp", optimizer="adam", dtype=torch.float64, examples=80, hyper={}, **options):
    "The weights of four learners and more after as many steps as there are examples, by the engines that are (True), by none (False) or by some."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=examples, passes=8, last_batch="keep")
    cohort = Cohort(grid(method, [0, 1], [1e-2, 1e-3], **hyper_of(method), **hyper), (1, 28, 28), 10, method, optimizer, network, dtype=dtype, **options)
    metrics = train(cohort, s, progress=False, engines=ENGINES if fast is True else fast or ())
    return cohort.theta, metrics


# The loop of whole steps does not take these: what they do is the same for both optimizers, of which one is tried at once.
OUTSIDE = dict(wasserstein="adam", selective_weights="sgd", cpr="adam", upgd="sgd", spectral="adam", parseval="sgd", regrama="adam")
BOTH = [pytest.param(m, o, marks=[] if OUTSIDE.get(m, o) == o else pytest.mark.slow) for o in ("adam", "sgd") for m in methods if methods[m].suits(o)]


@pytest.mark.parametrize("method, optimizer", BOTH)
def test_fast_equals_readable(method, optimizer):
    (fast, seen), (readable, expected) = (trained(method, f, optimizer=optimizer, hidden=[20]) for f in (True, False))
    calm = seen.learning_rate < 1e-2 if (method, optimizer) == ("fourier_features", "adam") else seen.learning_rate > 0 # the others blow up the last digit
    learners = seen.learner[calm].unique()
    assert len(learners) >= 2 and torch.allclose(fast[learners], readable[learners], atol=1e-8)
    assert (seen.online_accuracy == expected.online_accuracy)[calm].all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("hyper", [dict(), dict(utility="adaptable"), methods["continual_backprop"].hyper.in_code])
def test_every_form_of_continual_backprop(hyper, optimizer):
    "With three hidden layers, and a last batch that is smaller."
    deep = dict(optimizer=optimizer, examples=72, hyper={n: [v] for n, v in hyper.items()}, hidden=[12, 20, 9])
    fast, readable, plain = (trained(m, f, **o)[0] for m, f, o in (("continual_backprop", True, deep), ("continual_backprop", False, deep), ("plain", True, deep | dict(hyper={}))))
    assert torch.allclose(fast, readable, atol=1e-8) and not torch.allclose(fast[:1], plain[:1], atol=1e-2)


@pytest.mark.parametrize("order", [("l2_init", "regrama"), ("regrama", "l2_init")])
def test_parts_see_the_gradient_in_their_order(order):
    "A reset that judges by gradients sees a penalty's where that comes before it, however fast the step."
    parts = [part for name in order for part in methods[name].parts]
    methods.register("composed", Method("Composed", parts=parts))
    try: fast, readable = (trained("composed", f, optimizer="sgd", hidden=[20])[0] for f in (True, False))
    finally: forget(__name__)
    assert torch.allclose(fast, readable, atol=1e-8)


def test_a_reset_of_one_s_own_is_done():
    "Also one that is made from a reset which a loop does by itself."
    class Twice(ShrinkPerturb):
        def after_step(self, seen, step):
            super().after_step(seen, step)
            self.stack.theta.mul_(.5)
    methods.register("twice", Method("Twice", parts=[Twice]))
    try: cohort = Cohort(grid("twice", [0], [1e-3], shrink=[0.], noise=[0.]), (1, 28, 28), 10, "twice", hidden=[5])
    finally: forget(__name__)
    engine(cohort).learn_batches(torch.rand(1, 2, 1, 28, 28), torch.tensor([[0, 7]]), 2)
    assert torch.allclose(cohort.theta, cohort.theta0 / 2, atol=2e-3)


@pytest.mark.parametrize("method", ["l2_init", "spectral", "parseval", "shrink_perturb", "redo", "continual_backprop", "snr", "regrama", "cpr", "selective_weights"])
def test_fast_equals_readable_with_convolutions(method):
    "Without layer norm: over the black margins of digits it makes exact ties of max-pooling, which a last digit decides."
    small = dict(network="cnn", examples=48, channels=[3], kernels=[5], hidden=[12])
    assert torch.allclose(trained(method, True, **small)[0], trained(method, False, **small)[0], atol=1e-8)


def test_single_precision_stays_close():
    "Rounding alone differs, and 80 steps of SGD do not blow it up."
    (fast, _), (readable, _) = (trained("l2_init", f, optimizer="sgd", dtype=torch.float32, hidden=[20]) for f in (True, False))
    assert torch.allclose(fast, readable, atol=1e-5)


def test_the_penalty_leaves_layer_norm_alone():
    assert torch.allclose(*(trained("l2_init", f, hidden=[20], layer_norm=True)[0] for f in (True, False)), atol=1e-8)


def test_labels_without_an_output_are_refused():
    cohort = Cohort(grid("plain", [0], [1e-3]), (1, 28, 28), 5, "plain")
    with pytest.raises(InputError, match="there are 5 outputs"): engine(cohort).learn_batches(torch.zeros(1, 2, 1, 28, 28), torch.tensor([[0, 7]]), 2)


def test_without_a_compiler_a_warning_says_so(monkeypatch):
    def broken(*args, **kwargs): raise RuntimeError("no C++ compiler")
    monkeypatch.setattr(torch, "compile", broken)
    random_numbers.can_compile.cache_clear()
    with pytest.warns(UserWarning, match="torch.compile does not work here.*no C\\+\\+ compiler"): assert not random_numbers.can_compile("cpu")
    random_numbers.can_compile.cache_clear()


@pytest.mark.parametrize("method", ["plain", "l2_init", "spectral", "parseval", "wasserstein", "shrink_perturb", "redo", "continual_backprop", "snr", "regrama", "cpr", "selective_weights"])
def test_a_learner_does_not_depend_on_its_company(method):
    "Bit for bit in single precision: with others, whose digits have other blank margins, and alone."
    s = stream("permuted_mnist", dataset="mnist5k", tasks=2, examples=200)
    table = grid(method, [3, 1, 2], [1e-3, 1e-2], **hyper_of(method))
    train(together := Cohort(table, (1, 28, 28), 10, method, hidden=[20, 15]), s, progress=False)
    for k in (0, len(table) // 2, len(table) - 1):
        train(alone := Cohort(table.iloc[[k]].reset_index(drop=True), (1, 28, 28), 10, method, hidden=[20, 15]), s, progress=False)
        assert torch.equal(alone.theta[0], together.theta[k])


@pytest.mark.parametrize("method", methods)
def test_in_parts_as_a_whole(method, monkeypatch):
    "A cohort that learns in parts, whose seeds overlap, ends where the undivided one ends, and knows it."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=80, passes=8)
    whole, divided = (Cohort(grid(method, [3, 1, 2], [1e-2, 1e-3], **hyper_of(method)), (1, 28, 28), 10, method, hidden=[20], dtype=torch.float64) for _ in range(2))
    assert 1 < len(divided.split(4)) and sum(len(p) for p in divided.split(4)) == len(divided)
    a = train(whole, s, progress=False)
    monkeypatch.setattr(engines, "CACHE", 4 * 5 * whole.theta[0].nbytes)
    assert engine(divided, (LayersInCache,)).at_a_time(16) == 4
    b = train(divided, s, progress=False, engines=(LayersInCache,))
    assert torch.allclose(whole.theta, divided.theta, atol=1e-8) and whole.steps == divided.steps == 80
    assert (a.online_accuracy == b.online_accuracy).all() and (a.seed == b.seed).all()
    for name, tensor in divided.tensors().items(): assert torch.allclose(tensor, whole.tensors()[name], atol=1e-8), name


class Tape(TorchDispatchMode):
    "Stands in for a CUDA graph: what ran is run again on the same tensors. As on a GPU, nothing may be waited for."
    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        assert f not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), "a GPU would have to be waited for"
        out = f(*args, **kwargs or {})
        self.ran.append((f, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for f, args, kwargs, before in self.ran:
            for place, value in zip(tree_leaves(before), tree_leaves(f(*args, **kwargs))):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr(): place.copy_(value)


class Taped(Recording):
    def record(self, f):
        with Tape() as tape: outputs = f()
        return tape.replay, outputs


class OnTape(Recorded):
    device, recording = "cpu", Taped
    def compiled(self, f): return f


class Again(Recording):
    "In place of a recording, the function itself."
    def record(self, f):
        outputs = f()
        def replay():
            for place, value in zip(tree_leaves(outputs), tree_leaves(f())):
                if isinstance(place, torch.Tensor): place.copy_(value)
        return replay, outputs


class InOneGraph(Recorded):
    device, recording = "cpu", Again
    def compiled(self, f):
        torch._dynamo.reset() # it compiles a function anew only some times
        return torch.compile(f, backend="eager", fullgraph=True, dynamic=True)


@pytest.mark.parametrize("method", ["plain", "l2", "l2_init", "l1_init", "huber_init", "ewc", "l2_init_ewc", "l2_init + layer_norm"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_update_is_compiled_as_a_whole(method, optimizer):
    "Penalty and optimizer are one pass over memory, then."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=1, examples=48, passes=1)
    readable, compiled = (Cohort(grid(method, [0, 1], [1e-3], **hyper_of(method)), (1, 28, 28), 10, method, optimizer, hidden=[12]) for _ in range(2))
    train(readable, s, progress=False, engines=())
    train(compiled, s, progress=False, engines=(InOneGraph,))
    assert torch.allclose(readable.theta, compiled.theta, rtol=0, atol=1e-6)


SMALL = dict(mlp=dict(hidden=[12]), cnn=dict(hidden=[12], channels=[3], kernels=[5]), resnet18=dict(width=2), vit_small=dict(layers=1, heads=2, width=8, hidden=12, dropout=.1))


@pytest.mark.parametrize("method, network", [*((m, "mlp") for m in methods), *((m, "cnn") for m in ("l2_init", "redo", "continual_backprop")),
                                             *(("l2_init", n) for n in ("resnet18", "vit_small"))])
def test_replayed_steps_are_steps(method, network, monkeypatch):
    "Of two sizes of batch, bit for bit."
    options = dict(network=network, examples=24, **SMALL[network])
    expected, seen = trained(method, False, **options)
    monkeypatch.setattr(resets, "put", resets._put_unseen) # as on a GPU
    monkeypatch.setattr(resets, "none", lambda *counts: False)
    monkeypatch.setattr(random_numbers, "_uniform_in_a_loop", lambda key, n: random_numbers.to_uniform(random_numbers.bits(key, n)))
    monkeypatch.setattr(Network, "draw", Network.draw_at_once)
    replayed, seen_replayed = trained(method, (OnTape,), **options)
    assert torch.equal(replayed, expected) and seen_replayed.equals(seen)


@pytest.mark.parametrize("network", ("resnet18", "vit_small"))
def test_replayed_steps_of_a_few_learners_at_a_time(network, monkeypatch):
    options = dict(network=network, examples=24, **SMALL[network])
    expected, seen = trained("l2_init", False, **options)
    made, record = [], Recorded.in_parts
    def in_parts(self, most):
        made.append(most)
        return record(self, most)
    monkeypatch.setattr(Recorded, "in_parts", in_parts)
    monkeypatch.setattr(engines, "HELD", 1) # no room for more than one
    replayed, seen_replayed = trained("l2_init", (OnTape,), **options)
    assert made == [1] # and kept for the next task
    torch.testing.assert_close(replayed, expected, rtol=0, atol=1e-8)
    assert seen_replayed[["seed", "task"]].equals(seen[["seed", "task"]])


class Elsewhere(L2InitPenalty):
    def anchor_at(self, step): return self.stack.theta0 + 1


class Doubled(L2InitPenalty):
    slope = staticmethod(lambda d: 2 * d)


class Measured(ContinualBackprop):
    def _observe(self, i, h, params, seen):
        mean, utility = super()._observe(i, h, params, seen)
        return mean, -utility


class Backward(SGD):
    def update(self, theta, grad, state, lr): theta.add_(lr * grad)


def learned(method, optimizer="sgd", **how):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=1, examples=32, passes=10)
    cohort = Cohort(grid(method, [0, 1], [1e-2], **how.pop("hyper", {})), (1, 28, 28), 10, method, optimizer, hidden=[12])
    train(cohort, s, progress=False, **how)
    return cohort.theta


@pytest.mark.parametrize("part, parent", ((Elsewhere, "l2_init"), (Doubled, "l2_init"), (Measured, "continual_backprop")))
def test_a_loop_does_not_know_what_a_subclass_changes(part, parent, monkeypatch):
    monkeypatch.setitem(methods, "changed", Method("Changed", parts=[part]))
    hyper = dict(strength=[.5]) if parent == "l2_init" else dict(replacement_rate=[.05], maturity=[3])
    fast = learned("changed", hyper=hyper)
    assert torch.allclose(fast, learned("changed", hyper=hyper, engines=()), rtol=0, atol=1e-5)
    assert not torch.allclose(fast, learned(parent, hyper=hyper), rtol=0, atol=1e-3)


def test_a_loop_does_not_know_a_penalty_whose_text_was_changed(monkeypatch):
    monkeypatch.setattr(L1InitPenalty, "slope", staticmethod(lambda d: 0 * d))
    assert torch.allclose(learned("l1_init", hyper=dict(strength=[.5])), learned("plain"), rtol=0, atol=1e-5)


def test_a_loop_does_not_know_what_a_subclass_of_an_optimizer_changes(monkeypatch):
    monkeypatch.setitem(optimizers, "backward", Backward)
    assert torch.allclose(learned("plain", "backward"), learned("plain", "backward", engines=()), rtol=0, atol=1e-5)
    assert not torch.allclose(learned("plain", "backward"), learned("plain"), rtol=0, atol=1e-3)
