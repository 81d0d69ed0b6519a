"""The same learners on a GPU. Skipped where there is none."""
import copy
import gc

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, hyper_of

from l2init import training
from l2init.cohorts import Cohort
from l2init.drop_in import drop_in, measure
from l2init.internals import engines
from l2init.internals.core import InputError
from l2init.internals.engines import engine
from l2init.internals.random_numbers import key, normal, uniform
from l2init.methods import grid, methods
from l2init.optimizers import optimizers
from l2init.regularizers import L2Init, L2InitResampled
from l2init.streams import stream
from l2init.training import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
WORDS = ("online_accuracy", "online_loss", "weight_magnitude", "distance_from_init")
OTHERS = ("l2_init + layer_norm", "redo + shrink_perturb")


def test_draws_are_the_same_on_a_gpu():
    k = key(torch.arange(4), "gpu")
    for n in (7, 2**19): # as they stand, and compiled
        assert torch.equal(uniform(k, n), uniform(k.cuda(), n).cpu())
        assert torch.allclose(normal(k, n), normal(k.cuda(), n).cpu(), rtol=1e-4, atol=1e-5)


def agree(*tables, within=1e-4):
    for word in WORDS:
        if word not in tables[0]: continue # regression counts no right answers
        cpu, gpu = (torch.tensor(t[word].to_numpy(float)) for t in tables)
        assert torch.allclose(cpu, gpu, rtol=within, atol=within), (word, cpu, gpu)


def both(stream_, method, network, optimizer="adam", **options):
    "Metrics of the same learners on a CPU and on a GPU, as the step is defined, in double precision."
    shape = tuple(stream_.task(0, [0]).examples[0].shape[2:])
    rate = [1e-3 if optimizer == "adam" else 1e-2]
    return [train(Cohort(grid(method, [0, 1], rate, **hyper_of(method)), shape, stream_.outputs, method, optimizer, network, d, torch.float64, loss=stream_.loss, **options),
                  stream_, progress=False, engines=()) for d in ("cpu", "cuda")]


@pytest.mark.parametrize("network", ("mlp", "cnn"))
@pytest.mark.parametrize("method", (*methods, *OTHERS))
def test_a_gpu_learns_what_a_cpu_learns(method, network):
    options = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[3], kernels=[5], hidden=[8]))[network]
    agree(*both(stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=5), method, network, **options))


@pytest.mark.parametrize("name", (*TINY, "slowly_changing_regression"))
def test_streams_are_the_same_on_a_gpu(name):
    options, network = TINY.get(name, (dict(tasks=2, examples=64), dict(name="mlp", hidden=[10])))
    network = dict(network)
    agree(*both(stream(name, **options), "l2_init", network.pop("name"), **network))


@pytest.mark.parametrize("change", (dict(transition=.5), dict(recur=1)))
def test_changes_of_streams_are_the_same_on_a_gpu(change):
    agree(*both(stream("permuted_mnist", dataset="mnist5k", tasks=3, examples=64, **change), "plain", "mlp", hidden=[10]))


@pytest.mark.parametrize("optimizer", optimizers)
def test_optimizers_do_the_same_on_a_gpu(optimizer):
    if not methods["plain"].suits(optimizer): pytest.skip("comes with its method")
    agree(*both(stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=5), "plain", "mlp", optimizer, hidden=[12]))


@pytest.mark.parametrize("network, options", (("resnet18", dict(width=2)), ("resnet18", dict(width=2, norm="batch")), ("vit_small", dict(layers=1, heads=2, width=8, hidden=12))))
@pytest.mark.parametrize("method", ("plain", "l2_init", "shrink_perturb", "ewc"))
def test_cohorts_of_modules_do_the_same_on_a_gpu(network, options, method):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=32, passes=1, batch_size=16)
    agree(*both(s, method, network, "sgd", **options)) # Adam would blow up roundings of gradients that are 0


VIT = dict(layers=1, heads=2, width=8, hidden=12, dropout=.1)
MODULES = (("resnet18", dict(width=2)), ("vit_small", VIT))


@pytest.mark.parametrize("method, network, options", ((*((m, "mlp", {}) for m in (*methods, *OTHERS)), *(("l2_init", *module) for module in MODULES))))
def test_replayed_steps_on_a_gpu(method, network, options):
    "As the step is defined, with the optimizer compiled; and nothing in a task is waited for."
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=72, passes=5, last_batch="keep") # a last batch that is smaller
    readable, replayed = (Cohort(grid(method, [0, 1], [1e-3], **hyper_of(method)), (1, 28, 28), 10, method, "adam", network, "cuda", torch.float64, **options) for _ in range(2))
    train(readable, s, progress=False, engines=())
    train(replayed, s, progress=False)
    assert torch.allclose(readable.theta, replayed.theta, rtol=0, atol=1e-5), (readable.theta - replayed.theta).abs().max()
    steps = engine(replayed)
    steps.learn(s.task(0, replayed.seeds))
    if steps.reasons: return print(steps)
    assert steps.recordings
    task = s.task(1, replayed.seeds)
    task.examples # made before
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in task.blocks(): steps.learn_batches(x, y, s.batch_size)
    finally: torch.cuda.set_sync_debug_mode("default")


def test_a_few_learners_at_a_time_take_less_memory(monkeypatch):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=128, passes=4)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False) # as exact as a few learners' convolutions
    def trained(most):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        cohort = Cohort(grid("l2_init", [*range(16)], [1e-3], strength=[1e-2]), (1, 28, 28), 10, "l2_init", "sgd", "resnet18", "cuda", width=8)
        room = most and most * cohort.network.step_memory(cohort.theta[:2], s.batch_size)
        for its in (engines, training) if most else (): monkeypatch.setattr(its, "room", lambda device: room)
        train(cohort, s, progress=False)
        return cohort.theta, torch.cuda.max_memory_allocated()
    (together, most), (apart, less) = trained(None), trained(2)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)
    assert less < .7 * most


def test_a_replayed_step_in_bfloat16():
    s = stream("random_label_mnist", dataset="mnist5k", tasks=1, examples=64, passes=2)
    exact, low = (Cohort(grid("l2_init", [0, 1], [1e-3], strength=[1e-2]), (1, 28, 28), 10, "l2_init", "sgd", "vit_small", "cuda", **VIT, **more) for more in ({}, dict(precision="bfloat16")))
    for c in (exact, low): train(c, s, progress=False)
    assert not engine(low).reasons and low.theta.dtype == torch.float32
    assert 0 < (low.theta - exact.theta).abs().max() < 1e-2


def test_probes_see_the_same_on_a_gpu():
    s, probes = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=5), dict(plasticity=2, readiness=4, grama=True, kernel=16)
    cpu, gpu = (train(Cohort(grid("plain", [0, 1], [1e-3]), (1, 28, 28), 10, "plain", device=d, dtype=torch.float64, hidden=[12, 9]), s,
                      progress=False, engines=(), fresh=1, forgetting=True, **probes) for d in ("cpu", "cuda"))
    numbers = [n for n in cpu if pd.api.types.is_numeric_dtype(cpu[n]) and "second" not in n]
    pd.testing.assert_frame_equal(cpu[numbers], gpu[numbers], rtol=1e-3, atol=1e-3, check_dtype=False)


@pytest.mark.parametrize("method", ("redo", "continual_backprop", "ewc", "l2_init"))
def test_a_run_goes_on_on_a_gpu(method, tmp_path):
    def new(): return Cohort(grid(method, [0, 1], [1e-3], **hyper_of(method)), (1, 28, 28), 10, method, device="cuda", hidden=[12])
    s, place = stream("random_label_mnist", dataset="mnist5k", tasks=3, examples=64, passes=5), tmp_path / "checkpoint.pt"
    expected, first, cohort = train(new(), s, progress=False), s.task, new()
    class Killed(Exception): pass
    def until(t, *args):
        if t == 2: raise Killed
        return first(t, *args)
    killed = copy.copy(s)
    object.__setattr__(killed, "task", until)
    with pytest.raises(Killed): train(cohort, killed, checkpoint=place, every=0, progress=False)
    assert place.exists()
    got = train(new(), s, checkpoint=place, progress=False)
    agree(expected, got, within=1e-6)


@pytest.mark.parametrize("method", methods)
def test_drop_ins_do_the_same_on_a_gpu(method):
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).double()
    x, y, hyper = torch.randn(16, 1, 8, 8).double(), torch.randint(3, (16,)), {n: v[0] for n, v in hyper_of(method).items()}
    ends = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(first).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        try: drop_in(method, model, optimizer, example=x.to(device), **hyper)
        except InputError as e: return print(e)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)


OPTIMIZERS = {"fused": (torch.optim.Adam, dict(fused=True)), "capturable": (torch.optim.AdamW, dict(capturable=True)), "foreach": (torch.optim.AdamW, dict(foreach=True)),
              "amsgrad": (torch.optim.Adam, dict(amsgrad=True, capturable=True)), "momentum": (torch.optim.SGD, dict(lr=.1, momentum=.9, fused=True))}
RENEWED = dict(redo=dict(period=7, threshold=.4), continual_backprop=dict(replacement_rate=.02, maturity=5), shrink_perturb=dict(shrink=1e-3, noise=1e-3), l2_init=dict(strength=.1))


def made(method, device="cuda", optimizer="capturable", dtype=torch.float64):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3)).to(device, dtype)
    make, options = OPTIMIZERS[optimizer]
    opt = make(model.parameters(), **dict(lr=1e-2) | {n: v for n, v in options.items() if device == "cuda" or n != "capturable"})
    return model, opt, drop_in(method, model, opt, example=torch.ones(2, 1, 8, 8, device=device, dtype=dtype), **RENEWED[method])


def fit(model, opt, steps, run=None, device="cuda"):
    for i in steps:
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 1, 8, 8, generator=g, dtype=torch.float64).to(device), torch.randint(3, (16,), generator=g).to(device)
        opt.zero_grad()
        F.cross_entropy((run or model)(x), y).backward()
        opt.step()
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", RENEWED)
def test_drop_ins_with_the_optimizers_of_a_gpu(method, optimizer):
    "As on a CPU, where none is capturable: such a one counts its steps in single precision. And resumed bit for bit."
    expected = fit(*made(method, "cpu", optimizer)[:2], range(40), device="cpu")
    whole = fit(*made(method, optimizer=optimizer)[:2], range(40))
    assert torch.allclose(whole, expected, rtol=0, atol=1e-4 if "capturable" in OPTIMIZERS[optimizer][1] else 1e-6)
    model, opt, handle = made(method, optimizer=optimizer)
    fit(model, opt, range(23))
    kept = copy.deepcopy([it.state_dict() for it in (model, opt, handle)])
    model, opt, handle = made(method, optimizer=optimizer)
    for it, state in zip((model, opt, handle), kept): it.load_state_dict(state)
    assert torch.equal(fit(model, opt, range(23, 40)), whole)


@pytest.mark.parametrize("method", RENEWED)
def test_drop_ins_of_a_compiled_model_on_a_gpu(method):
    expected, (model, opt, _) = fit(*made(method)[:2], range(30)), made(method)
    torch._dynamo.reset() # it takes compiled code of other models, without their hooks
    assert torch.allclose(fit(model, opt, range(30), torch.compile(model)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ("fused", "capturable", "momentum"))
@pytest.mark.parametrize("method", RENEWED)
def test_drop_ins_with_a_scaler_in_half_precision(method, optimizer):
    "A step whose gradients overflow is skipped by the scaler, and is none of the method's."
    model, opt, handle = made(method, optimizer=optimizer, dtype=torch.float32)
    scaler, g = torch.amp.GradScaler("cuda", init_scale=2.**8), torch.Generator().manual_seed(0)
    taken = 0
    for i in range(40):
        x, y = torch.randn(16, 1, 8, 8, generator=g).cuda(), torch.randint(3, (16,), generator=g).cuda()
        opt.zero_grad()
        with torch.autocast("cuda", torch.float16): loss = F.cross_entropy(model(x), y) * (torch.inf if i % 10 == 5 else 1.)
        before, scale = [p.detach().clone() for p in model.parameters()], scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        skipped = scaler.get_scale() < scale
        assert skipped == (i % 10 == 5)
        if skipped: assert all(torch.equal(b, p) for b, p in zip(before, model.parameters()))
        taken += not skipped
    assert handle.steps == taken == 36
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def captured(opt, model, x, y):
    "One step in a CUDA graph, after steps beside it that warm up."
    def step():
        opt.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        opt.step()
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        for _ in range(3): step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): step()
    return graph


def test_a_step_in_a_graph_pulls_and_a_method_that_decides_refuses_it():
    x, y, ends = torch.randn(16, 1, 8, 8, device="cuda", dtype=torch.float64), torch.randint(3, (16,), device="cuda"), []
    for graphed in (False, True):
        model, opt, handle = made("redo")
        handle.remove()
        L2Init(model, strength=.5).attach(opt)
        if graphed:
            graph = captured(opt, model, x, y)
            for _ in range(5): graph.replay()
        else:
            for _ in range(8):
                opt.zero_grad()
                F.cross_entropy(model(x), y).backward()
                opt.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=0, atol=1e-9)
    model, opt, _ = made("redo")
    with pytest.raises(InputError, match="captured in a CUDA graph, in which redo could not decide"): captured(opt, model, x, y)


def test_measured_on_a_gpu_as_on_a_cpu():
    model, x, y = made("redo")[0], torch.randn(64, 1, 8, 8, device="cuda", dtype=torch.float64), torch.randint(3, (64,), device="cuda")
    before, state = copy.deepcopy(model.state_dict()), torch.cuda.get_rng_state()
    more = dict(readiness=4, kernel=5)
    gpu, cpu = measure(model, x, y, **more), measure(copy.deepcopy(model).cpu(), x.cpu(), y.cpu(), **more)
    assert gpu.keys() == cpu.keys() and len(gpu) > 5
    assert all(abs(gpu[n] - cpu[n]) <= 1e-6 * max(1, abs(cpu[n])) for n in gpu), (gpu, cpu)
    assert torch.equal(torch.cuda.get_rng_state(), state) and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_a_gpus_random_numbers_stay(device):
    "Also where the CPU alone draws."
    torch.cuda.manual_seed(3)
    expected = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(3)
    model, _, _ = made("redo", device)
    torch.cuda.manual_seed(3)
    measure(model, torch.ones(4, 1, 8, 8, device=device, dtype=torch.float64), torch.zeros(4, dtype=torch.int64, device=device))
    drop_in("continual_backprop", model, torch.optim.SGD(model.parameters(), lr=.1), example=torch.ones(2, 1, 8, 8, device=device, dtype=torch.float64), replacement_rate=.1)
    L2InitResampled(model, strength=.1)()
    Cohort(grid("plain", [0, 1], [1e-3]), (1, 28, 28), 10, "plain", "sgd", "resnet18", device, width=2)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
