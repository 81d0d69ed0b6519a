"""Drop-ins in two processes: each rank has batches of its own, and all renew the same units with the same draws."""
import torch
from processes import two_ranks
from torch import nn

from l2init.drop_in import drop_in

HYPER = dict(redo=dict(period=2, threshold=.5), continual_backprop=dict(replacement_rate=.2, maturity=1), shrink_perturb=dict(shrink=.01, noise=.01))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def trained(method, model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    drop_in(method, model, optimizer, example=torch.randn(2, 6).double(), **HYPER[method])
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def data(): return torch.randn(8, 2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def each_its_own(rank, method, **hyper):
    "Hooked before the ranks have the same weights, with examples [ranks, …] of which the second rank has more batches."
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    nn.init.normal_(model[0].weight) # whose spread is known from the weights
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    handle = drop_in(method, model, optimizer, example=torch.randn(2, 6).double(), **hyper)
    ddp = nn.parallel.DistributedDataParallel(model)
    for i, x in enumerate(data()[:, rank]):
        if i == 4: handle.task_ends(ended=[(data()[b, rank], torch.arange(4) % 3) for b in range(1 + rank)])
        optimizer.zero_grad()
        ddp(x).square().mean().backward()
        optimizer.step()
    with handle.evaluated(): return torch.cat([p.detach().flatten() for p in model.parameters()])


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)])
    def forward(self, x, both=True): return self.heads[0](x) + (self.heads[1](x) if both else 0)


def with_parts_of_the_model(rank, method, **hyper):
    "The second rank asks the second head in every other step only: then its units wait on both."
    torch.manual_seed(0)
    model = Heads().double()
    start = torch.cat([p.detach().flatten() for p in model.heads[1].parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.)
    drop_in(method, model, optimizer, torch.randn(2, 6).double(), **hyper)
    ddp, stayed = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True), []
    for i, x in enumerate(data()[:, rank]):
        optimizer.zero_grad()
        ddp(x, both=rank == 0 or i % 2 == 1).square().mean().backward()
        optimizer.step()
        now = torch.cat([p.detach().flatten() for p in model.heads[1].parameters()])
        stayed.append(torch.equal(now, start))
        start = now
    return stayed, torch.cat([p.detach().flatten() for p in model.parameters()])


def with_nothing_in_common(rank, method, **hyper):
    "Each rank asks another head, or one of them none: then nobody is judged, and no rank waits for another."
    torch.manual_seed(0)
    model = nn.ModuleList(Heads().heads)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.)
    both = nn.Module()
    both.heads = model
    both.forward = lambda x, which: x.new_zeros(len(x), 3) if which is None else model[which](x) if which < 2 else model[0](x) + model[1](x)
    drop_in(method, both, optimizer, (torch.randn(2, 6), 2), **hyper)
    for which in (rank, None if rank else 0):
        if which is not None: both(torch.randn(4, 6), which).square().mean().backward()
        else: both(torch.randn(4, 6), which)
        optimizer.step()
        optimizer.zero_grad()
    return torch.equal(start, torch.cat([p.detach().flatten() for p in model.parameters()]))


class Trunk(nn.Module):
    "A layer that is seen at its activation, whichever head reads it."
    def __init__(self):
        super().__init__()
        self.trunk, self.heads = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
    def forward(self, x, which):
        h = self.trunk(x)
        return sum(self.heads[i](h) for i in which)


def with_another_head(rank, method, **hyper):
    "What is read differs by rank, and what is seen does not: the units are judged."
    torch.manual_seed(0)
    model = Trunk()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.)
    handle = drop_in(method, model, optimizer, (torch.randn(4, 6), (0, 1)), **hyper)
    for _ in range(3):
        model(torch.randn(4, 6), (rank,)).square().mean().backward()
        optimizer.step()
    return sorted(handle.stack.waiting), torch.cat([p.detach().flatten() for p in model.trunk.parameters()])


WAITING = dict(redo=dict(period=1, threshold=1e9), regrama=dict(period=1, threshold=1e9), continual_backprop=dict(replacement_rate=.5, maturity=1))
OWN = dict(l2_init=dict(strength=.1), hare_and_tortoise=dict(period=3, momentum=.5), ewc=dict(importance=100.), shrink_perturb=dict(shrink=.1, noise=.1))


def work(rank):
    own = {m: each_its_own(rank, m, **hyper) for m, hyper in OWN.items()}
    alike = {m: trained(m, nn.parallel.DistributedDataParallel(net()), data()[:, rank]) for m in HYPER}
    return own, alike, {m: with_parts_of_the_model(rank, m, **hyper) for m, hyper in WAITING.items()}, {m: with_nothing_in_common(rank, m, **hyper) for m, hyper in WAITING.items()}, with_another_head(rank, "redo", period=1, threshold=1e9)


def test_ranks_stay_alike_and_are_as_one_process(tmp_path):
    (own, first, waited, stayed_all, head), (own_of_second, second, waited_of_second, stayed_all_of_second, head_of_second) = two_ranks(work, tmp_path)
    for method in HYPER:
        assert torch.equal(first[method], second[method])
        assert torch.allclose(first[method], trained(method, net(), data().flatten(1, 2)), rtol=0, atol=1e-9) # of the whole batch
    for method in OWN: assert torch.equal(own[method], own_of_second[method]), method
    for method, (stayed, weights) in waited.items():
        assert torch.equal(weights, waited_of_second[method][1]) and stayed == waited_of_second[method][0]
        assert stayed[::2] == [True] * 4 and not all(stayed[1::2]), (method, stayed)
    assert {*stayed_all.values(), *stayed_all_of_second.values()} == {True}
    assert head[0] == head_of_second[0] == [] and torch.equal(head[1], head_of_second[1])
