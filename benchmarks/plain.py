"""The plain way: one learner at a time, `nn.Module`, autograd and `torch.optim`, the penalty in the loss, methods as hooks and small functions.

This is what somebody would write who trains one network. It is what lock-step training is measured against.
"""
import torch
import torch.nn.functional as F
from torch import nn


class PlainLearner:
    "One learner. `step` predicts, counts and learns."

    def __init__(self, model, optimizer, strength=0.0, reset=None):
        self.model, self.strength, self.reset = model, strength, reset
        self.anchors = [p.detach().clone() for p in model.parameters()]
        self.optimizer = optimizer(model.parameters())
        self.right = torch.zeros((), device=self.anchors[0].device)
        if reset: reset.start(self)

    def step(self, x, y):
        logits = self.model(x)
        self.right += (logits.detach().argmax(1) == y).float().mean()
        loss = F.cross_entropy(logits, y)
        if self.strength: loss = loss + self.strength / 2 * sum((p - a).square().sum() for p, a in zip(self.model.parameters(), self.anchors))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.reset:
            with torch.no_grad(): self.reset.apply()


class ShrinkPerturb:
    "All weights are shrunk, and a new draw from the initial distribution is added."

    def __init__(self, shrink, noise): self.shrink, self.noise = shrink, noise

    def start(self, learner):
        linear = [m for m in learner.model if isinstance(m, nn.Linear)]
        self.parameters = [(p, m.in_features ** -.5) for m in linear for p in (m.weight, m.bias)]

    def apply(self):
        for p, bound in self.parameters: p.mul_(1 - self.shrink).add_(torch.empty_like(p).uniform_(-bound, bound), alpha=self.noise)


class Units:
    "What resets of units share: activations by hooks, and how a unit is made new."

    def start(self, learner):
        self.memory, self.steps = learner.optimizer.state, 0
        linear = [m for m in learner.model if isinstance(m, nn.Linear)]
        self.layers = list(zip(linear, linear[1:])) # incoming and outgoing weights of each hidden layer
        self.activations = {}
        for i, m in enumerate(m for m in learner.model if isinstance(m, nn.ReLU)):
            m.register_forward_hook(lambda _, __, out, i=i: self.activations.__setitem__(i, out.detach()))

    def renew(self, into, out, units):
        bound = into.in_features ** -.5
        into.weight[units] = torch.empty(len(units), into.in_features).uniform_(-bound, bound)
        into.bias[units], out.weight[:, units] = 0., 0.
        for p, where in ((into.weight, units), (into.bias, units), (out.weight, (slice(None), units))):
            for name in ("exp_avg", "exp_avg_sq"): self.memory[p][name][where] = 0.


class ReDo(Units):
    "Every `period` steps, dormant units are made new."

    def __init__(self, period, threshold): self.period, self.threshold = period, threshold

    def apply(self):
        self.steps += 1
        if self.steps % self.period: return
        for i, (into, out) in enumerate(self.layers):
            size = self.activations[i].abs().mean(0)
            units = (size / (size.mean() + 1e-9) <= self.threshold).nonzero().flatten()
            if len(units): self.renew(into, out, units)


class ContinualBackprop(Units):
    "At every step, a share of the mature units of low contribution is made new."

    def __init__(self, rate, maturity=100, decay=.99): self.rate, self.maturity, self.decay = rate, maturity, decay

    def start(self, learner):
        super().start(learner)
        zeros = lambda: [torch.zeros(m.out_features) for m, _ in self.layers]
        self.age, self.mean, self.utility, self.left = zeros(), zeros(), zeros(), [0.] * len(self.layers)

    def apply(self):
        for i, (into, out) in enumerate(self.layers):
            a, age, mean, utility = self.activations[i], self.age[i], self.mean[i], self.utility[i]
            age += 1
            mean.lerp_(a.mean(0), 1 - self.decay)
            utility.lerp_(a.abs().mean(0) * out.weight.abs().sum(0), 1 - self.decay)
            eligible = (age > self.maturity).nonzero().flatten()
            self.left[i] += self.rate * len(eligible)
            n = int(self.left[i] + 1e-6)
            if not n: continue
            self.left[i] -= n
            correction = 1 - self.decay ** age
            units = eligible[(utility / correction)[eligible].argsort()[:n]]
            out.bias += out.weight[:, units] @ (mean / correction)[units]
            self.renew(into, out, units)
            for t in (age, mean, utility): t[units] = 0.
