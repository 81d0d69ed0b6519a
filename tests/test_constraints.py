"""Update rules, constraints and changes at boundaries against a plain loop of one learner's, in PyTorch's own words, on MLP and CNN."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import hyper_of

from l2init.cohorts import Cohort
from l2init.constraints import constraints
from l2init.internals.core import InputError
from l2init.internals.random_numbers import key, normal
from l2init.methods import grid, methods
from l2init.optimizers import updates
from l2init.streams import stream
from l2init.training import train

NETWORKS = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[3], kernels=[5], hidden=[8]))
LR = 1e-2


def setting(): return stream("random_label_mnist", dataset="mnist5k", tasks=3, examples=64, passes=5)


def cohort_of(method, optimizer="adam", network="mlp", seeds=(1, 2), **hyper):
    learners = grid(method, list(seeds), [LR], **{n: [v] for n, v in hyper.items()})
    return Cohort(learners, (1, 28, 28), 10, method, optimizer, network, dtype=torch.float64, **NETWORKS[network])


class Plain:
    "A plain learner: autograd, an optimizer of PyTorch's, and at each moment nothing. A subclass says what its method does."
    def __init__(self, cohort, k, optimizer, **hyper):
        self.net, self.seed, self.v = cohort.network, cohort.learner_seeds[k], hyper
        self.model = cohort.module(k)
        self.first = copy.deepcopy(self.model)
        self.weighted = [m for m in self.model if hasattr(m, "weight") and not isinstance(m, torch.nn.LayerNorm)]
        self.optimizer = self.new_optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](self.model.parameters(), lr=LR)
        self.steps = 0

    def like_model(self, flat): return self.net.module(flat.double())
    def fresh(self, purpose, task): return self.like_model(self.net.draw(purpose, self.seed[None], task)[0])
    def noise(self, purpose, counter): return list(self.like_model(normal(key(self.seed, purpose, counter), self.net.size)).parameters())
    def descend(self): self.optimizer.step()
    def after_step(self): pass
    def between(self, task): pass
    def evaluated(self): return self.model

    @torch.no_grad()
    def _moment(self, f, *args): return f(*args)

    def learn(self, s):
        for t in range(s.tasks):
            if t: self.between(s.task(t, self.seed[None]))
            for x, y in s.task(t, self.seed[None]).batches():
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x[0].double()), y[0]).backward()
                self._moment(self.descend)
                self.steps += 1
                self._moment(self.after_step)
        return self.net.stack([self.model])[0], self.net.stack([self.evaluated()])[0]


class Upgd(Plain):
    "As in the paper, with torch's own layout of weights."
    utilities = None

    def descend(self):
        v, params = self.v, list(self.model.parameters())
        if self.utilities is None: self.utilities = [torch.zeros_like(p) for p in params]
        before, g = [p.clone() for p in params], [p.grad for p in params]
        for u, p in zip(self.utilities, params): u.mul_(v["utility_decay"]).sub_(p.grad * p * (1 - v["utility_decay"]))
        self.optimizer.step()
        corrected = [u / (1 - v["utility_decay"]**(self.steps + 1)) for u in self.utilities]
        largest = max(u.max() for u in (self.utilities if v["largest"] == "uncorrected" else corrected))
        for p, b, u, xi in zip(params, before, corrected, self.noise("upgd", self.steps)):
            gate = 1 - torch.sigmoid(F.normalize(u, dim=-1) if v["scope"] == "local" else u / largest)
            step = p - b
            noise = LR * v["noise"] * xi
            moved = (step - noise) * gate if v["gated"] == "step_and_noise" else step - noise * gate
            p.copy_((1 - LR * v["weight_decay"]) * b + moved)


class AdamRel(Plain):
    def between(self, task):
        for state in self.optimizer.state.values(): state["step"].zero_()


class Clipping(Plain): # with bounds below 1, many first weights are equal, and max-pooling has ties that a last digit decides
    def after_step(self):
        for m in self.weighted if self.v["last"] == "clipped" else self.weighted[:-1]:
            bound = self.v["bound"] / math.sqrt(m.weight[0].numel())
            for p in m.parameters(): p.clamp_(-bound, bound)


class Nap(Plain):
    def after_step(self):
        firsts = {a: b for a, b in zip(self.model, self.first)}
        for m in self.weighted[:-1]: m.weight.mul_(firsts[m].weight.norm() / m.weight.norm())
        for m in self.model:
            if isinstance(m, torch.nn.LayerNorm) and self.v["norms"] == "projected":
                length = math.sqrt(m.weight.numel()) / torch.cat([m.weight.flatten(), m.bias.flatten()]).norm()
                for p in (m.weight, m.bias): p.mul_(length)


class HareTortoise(Plain):
    tortoise = None

    def after_step(self):
        if self.tortoise is None: self.tortoise = copy.deepcopy(self.first)
        for t, p in zip(self.tortoise.parameters(), self.model.parameters()):
            t.copy_(self.v["momentum"] * t + (1 - self.v["momentum"]) * p)
            if self.steps % self.v["period"] == 0: p.copy_(t)

    def evaluated(self): return self.tortoise


class Full(Plain):
    @torch.no_grad()
    def between(self, task):
        for p, new in zip(self.model.parameters(), self.fresh("full reset", task.index).parameters()): p.copy_(new)
        self.optimizer.state.clear()


class Head(Plain):
    @torch.no_grad()
    def between(self, task):
        for p, new in zip(self.model[-1].parameters(), self.fresh("head reset", task.index)[-1].parameters()):
            p.copy_(new)
            self.optimizer.state.pop(p, None)


class AshAdams(Plain):
    @torch.no_grad()
    def between(self, task):
        for p, xi in zip(self.model.parameters(), self.noise("perturb at boundary", task.index)):
            p.copy_((1 - self.v["shrink"]) * p + self.v["noise"] * xi)


class Soft(Plain):
    @torch.no_grad()
    def between(self, task):
        for p, new in zip(self.model.parameters(), self.fresh("soft reset", task.index).parameters()):
            p.copy_((1 - self.v["share"]) * p + self.v["share"] * new)


class Fire(Plain):
    @torch.no_grad()
    def between(self, task):
        for m in self.weighted:
            for w in [m.weight] if m.weight.dim() == 2 else [m.weight[:, :, i, j] for i in range(5) for j in range(5)]:
                u, s, vh = torch.linalg.svd(w, full_matrices=False)
                s = s / s.norm()
                for _ in range(10): s = 1.5 * s - .5 * s**3 # what the steps do to each singular value
                w.copy_(u @ s.diag() @ vh * math.sqrt(w.shape[0] / w.shape[1]) / m.weight[0, 0].numel())


class Dash(Plain):
    def between(self, task):
        mean = {p: torch.zeros_like(p) for p in self.model.parameters()}
        for x, y in list(task.batches())[:task.stream.steps // task.stream.passes]:
            loss = F.cross_entropy(self.model(x[0].double()), y[0])
            for p, g in zip(mean, torch.autograd.grad(loss, list(mean))): mean[p] = (1 - self.v["mix"]) * mean[p] - self.v["mix"] * g
        with torch.no_grad():
            for p, g in mean.items():
                n = p.shape[-1] if p.dim() < 3 else p[0, 0].numel()
                a, b = p.reshape(-1, n), g.reshape(-1, n)
                cos = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-30)
                p.copy_((a * cos.clamp(self.v["floor"], 1)[:, None]).view_as(p))


UPGD = dict(noise=.1, utility_decay=.9, weight_decay=.1, scope="global", gated="step_and_noise", largest="corrected")
CASES = [*(("upgd", Upgd, UPGD | more) for more in ({}, dict(scope="local"), dict(gated="noise"), dict(largest="uncorrected"), dict(scope="local", gated="noise"))),
         ("adam_rel", AdamRel, {}), *(("weight_clipping", Clipping, dict(bound=1.1, last=last)) for last in ("clipped", "free")),
         *(("normalize_and_project", Nap, dict(norms=norms)) for norms in ("projected", "free")), ("hare_and_tortoise", HareTortoise, dict(period=7, momentum=.9)),
         ("full_reset", Full, {}), ("head_reset", Head, {}), ("shrink_perturb_at_boundaries", AshAdams, dict(shrink=.4, noise=.01)),
         ("soft_reset", Soft, dict(share=.2)), ("fire", Fire, {}), ("dash", Dash, dict(mix=.3, floor=.2))]
NAMED = [pytest.param(*c, id="-".join([c[0], *(str(v) for v in c[2].values() if isinstance(v, str))])) for c in CASES]


def test_each_has_a_plain_version(): assert {c[0] for c in CASES} == {*updates, *constraints}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method, plain, hyper", NAMED)
def test_as_a_plain_loop_does(method, plain, hyper, optimizer, network):
    "Three tasks of 20 steps, two learners: the weights, and those that are measured."
    if not methods[method].suits(optimizer): return
    cohort, s = cohort_of(method, optimizer, network, **hyper), setting()
    loops = [plain(cohort, k, optimizer, **hyper) for k in range(2)]
    expected = [torch.stack(e) for e in zip(*(loop.learn(s) for loop in loops))]
    without = cohort_of("plain", optimizer, network)
    for c in (cohort, without): train(c, s, progress=False, engines=())
    assert torch.allclose(cohort.theta, expected[0], atol=1e-8) and torch.allclose(cohort.measured, expected[1], atol=1e-8)
    assert cohort.theta.shape != without.theta.shape or not torch.allclose(cohort.theta, without.theta, atol=1e-4)


@pytest.mark.parametrize("method", [*updates, *constraints])
def test_a_resumed_run_is_an_uninterrupted_one(method, tmp_path, monkeypatch):
    from l2init import training
    make = lambda: cohort_of(method, **{n: v[0] for n, v in hyper_of(method).items()})
    s, whole, cut = setting(), make(), make()
    train(whole, s, progress=False)
    class Killed(Exception): pass
    def learn_two(engine, stream, t, options):
        if t == 2: raise Killed
        return learn(engine, stream, t, options)
    learn = training.learn_task
    with monkeypatch.context() as m:
        m.setattr(training, "learn_task", learn_two)
        with pytest.raises(Killed): train(cut, s, progress=False, checkpoint=tmp_path / "c.pt", every=0)
    again = make()
    train(again, s, progress=False, checkpoint=tmp_path / "c.pt")
    assert torch.equal(again.theta, whole.theta) and torch.equal(again.measured, whole.measured)


@pytest.mark.parametrize("method", [*updates, *constraints])
def test_learners_do_together_what_each_does_alone(method):
    hyper, s = {n: v[0] for n, v in hyper_of(method).items()}, setting()
    together = cohort_of(method, network="cnn", seeds=(1, 2, 3), **hyper)
    train(together, s, progress=False)
    for k, seed in enumerate((1, 2, 3)):
        alone = cohort_of(method, network="cnn", seeds=(seed,), **hyper)
        train(alone, s, progress=False)
        assert torch.allclose(alone.theta[0], together.theta[k], atol=1e-9)


IDENTITIES = dict(weight_clipping=dict(bound=1e6), shrink_perturb_at_boundaries=dict(shrink=0., noise=0.), soft_reset=dict(share=0.), dash=dict(floor=1.), hare_and_tortoise=dict(period=1, momentum=0.))


@pytest.mark.parametrize("method", IDENTITIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_does_nothing_is_plain_training(method, optimizer):
    nothing, plain = cohort_of(method, optimizer, **IDENTITIES[method]), cohort_of("plain", optimizer)
    for c in (nothing, plain): train(c, setting(), progress=False, engines=())
    assert torch.equal(nothing.theta, plain.theta)


def test_full_reset_learns_as_well_in_each_task():
    "The online accuracy of a task depends on its labels and its draw alone, not on the tasks before."
    cohort, s = cohort_of("full_reset", seeds=range(8)), setting()
    rows = train(cohort, s, progress=False).groupby("task").online_accuracy.mean()
    assert (rows - rows[0]).abs().max() < .05


def test_adam_rel_is_refused_without_adam():
    with pytest.raises(InputError, match="Adam-Rel is for the optimizer adam, not for sgd"): cohort_of("adam_rel", "sgd")


# The sum of all weights' sizes of both learners after 60 steps of SGD, as the authors' code ends from the same weights, batches and noise:
# github.com/mohmdelsayed/upgd at b75e90a, mohmdelsayed/weight-clipping at 0d3db49, isaac7778/FIRE at c37a0ac (also its port of DASH, whose rule is that of
# baekrok/DASH-Direction-Aware-SHrinking at dcac4c2). Weights themselves differed by 1e-15 at most when this was compared.
PUBLIC = {
    "upgd": [(dict(scope="global", gated="step_and_noise"), [192.161405908, 190.654002397], [101.835625127, 101.018749993]),
             (dict(scope="global", gated="noise"), [192.274143743, 191.067215438], [102.115405768, 101.155098111]),
             (dict(scope="local", gated="step_and_noise"), [192.170145209, 190.625217673], [101.845859387, 100.960023728]),
             (dict(scope="local", gated="noise"), [192.303052863, 191.051388237], [102.111628756, 101.162642644])],
    "weight_clipping": [(dict(bound=.7, last="clipped"), [183.322424869, 180.593355369], None), (dict(bound=.7, last="free"), [184.746023849, 182.448004553], None),
                        (dict(bound=1.1, last="clipped"), None, [108.02908266, 106.715248204])],
    "dash": [(dict(mix=.3, floor=.2), [8.632527891, 8.972816811], [4.444584078, 5.282126665])],
    "fire": [(dict(), [88.382520525, 87.423414954], [48.388122552, 48.968026994])]}
AS_THERE = dict(upgd=dict(noise=.1, utility_decay=.9, weight_decay=.1, largest="uncorrected"))


@pytest.mark.parametrize("method, hyper, mlp, cnn", [(m, *row) for m, rows in PUBLIC.items() for row in rows])
def test_as_the_authors_code_does(method, hyper, mlp, cnn):
    for network, expected in dict(mlp=mlp, cnn=cnn).items():
        if expected is None: continue # of convolutions with a bound below 1, see `Clipping`
        cohort = cohort_of(method, "sgd", network, **AS_THERE.get(method, {}), **hyper)
        train(cohort, setting(), progress=False, engines=())
        assert cohort.theta.abs().sum(1).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("optimizer, expected", (("sgd", [192.663154911, 199.473245986]), ("adam", [718.517819667, 947.292277871])))
def test_snr_as_the_authors_code_does(optimizer, expected):
    """As above: ajozefiak/SelfNormalizedResets at 8b84f0c, in double precision with our draws put in, over 320 steps of SGD with 19 and 5 renewed units, and of
    Adam with 185 and 143. Weights differed by 6e-9 at most. An age above the length of its histogram is not counted there: here all ages are multiples of 16 up to 400."""
    s = stream("random_label_mnist", dataset="mnist5k", tasks=8, examples=64, passes=10)
    cohort = cohort_of("snr", optimizer, percentile=.9, update_every=2, lowest=100, highest=400, order="by_layer")
    train(cohort, s, progress=False, engines=())
    assert cohort.theta.abs().sum(1).tolist() == pytest.approx(expected, abs=1e-7)
