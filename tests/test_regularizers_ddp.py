"""The drop-in regularizers in two processes: DistributedDataParallel makes weights alike, and the regularizer its anchors."""
import torch
import torch.distributed as dist
from processes import two_ranks
from torch import nn

from l2init.internals.core import InputError
from l2init.regularizers import L2, L2Init, L2InitResampled

DDP = nn.parallel.DistributedDataParallel


def trained(rank, make):
    "Penalties before training and the weights after three steps, of a model that each rank seeds differently."
    torch.manual_seed(rank)
    model = nn.Linear(6, 3)
    reg = make(model, rank)
    ddp = DDP(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=.1)
    reg.attach(optimizer)
    before = reg().item()
    for _ in range(3):
        optimizer.zero_grad()
        ddp(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    anchors = [] if isinstance(reg, L2) else [b.flatten().float() for b in reg.buffers()]
    return torch.cat([model.weight.detach().flatten(), *anchors, torch.tensor([before])])


def of_all_kinds(rank):
    "The penalty of parameters of several types, and of one that is not contiguous."
    torch.manual_seed(rank)
    model = nn.ParameterList([nn.Parameter(torch.randn(3, dtype=dtype)) for dtype in (torch.cfloat, torch.double, torch.bfloat16, torch.half)])
    model.append(nn.Parameter(torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last)))
    reg = L2Init(model, strength=1.)
    for p in model:
        values = (torch.view_as_real(p.data) if p.is_complex() else p.data).contiguous()
        dist.broadcast(values, src=0)
        p.data.copy_(torch.view_as_complex(values) if p.is_complex() else values)
    return reg().detach().float()[None]


def of_its_own(rank):
    "Each rank has another model: an error that all of them see, or no agreement."
    torch.manual_seed(rank)
    model, shape = nn.Linear(6, 3), nn.Linear(6, 3 + rank)
    for unlike in (model, shape):
        try: L2Init(unlike, strength=1.)()
        except InputError as e: assert "'weight' on rank 1" in str(e) or "'bias' on rank 1" in str(e), e
        else: raise AssertionError("each rank has anchors of its own")
    assert L2Init(model, strength=1., sync=False)().item() == 0
    assert L2(model, strength=1.)() > 0  # has no need of common anchors
    return torch.zeros(1)


def work(rank):
    makers = dict(l2=lambda m, r: L2(m, 1.), l2_init=lambda m, r: L2Init(m, 1.), resampled=lambda m, r: L2InitResampled(m, 1., seed=r))
    return {n: trained(rank, make) for n, make in makers.items()} | dict(types=of_all_kinds(rank), own=of_its_own(rank))


def test_all_ranks_have_the_same_anchors(tmp_path):
    first, second = two_ranks(work, tmp_path)
    for name in first: assert torch.equal(first[name], second[name]), name
    assert first["l2_init"][-1] == 0 and first["types"] == 0
