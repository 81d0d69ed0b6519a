"""Every method on every stream, tiny, with one optimizer at once, with the other by the slow tests; each of them through papermill as well; and what is recorded, counted again by a plain loop."""
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, hyper_of
from processes import ROOT

from l2init.cohorts import Cohort
from l2init.methods import grid, methods
from l2init.training import train
from l2init.streams import stream, streams
from l2init.internals.runs import papermill_to

torch.set_num_threads(1)


def cohort_on(s, method, network, learners, optimizer="adam", **options):
    name, net = network["name"], {n: v for n, v in network.items() if n != "name"}
    return Cohort(learners, s.data().images.shape[1:], s.outputs, method, optimizer, name, **net, **options)


def test_all_streams_are_tried(): assert {*TINY, "slowly_changing_regression"} == set(streams) # which 13_training trains on


def paired(i, j, optimizer):
    "Whether the pair of the `i`-th method and the `j`-th stream is tried with the optimizer at once: each pair with one, each method and each stream with both."
    return (i + j) % 2 == ("adam", "sgd").index(optimizer)


TRIED = [pytest.param(m, n, o, marks=[] if paired(i, j, o) or not all(map(methods[m].suits, ("adam", "sgd"))) else pytest.mark.slow)
         for i, m in enumerate(methods) for j, n in enumerate(TINY) for o in ("adam", "sgd") if methods[m].suits(o)]


@pytest.mark.parametrize("method, name, optimizer", TRIED)
def test_every_method_on_every_stream(method, name, optimizer):
    options, network = TINY[name]
    s, learners = stream(name, **options), grid(method, [0, 1], [1e-2], **hyper_of(method))
    m = train(cohort_on(s, method, network, learners, optimizer), s, progress=False, fresh=2, forgetting=True)
    assert len(m) == s.tasks * len(learners) and not m.diverged.any() and m.online_accuracy.between(0, 1).all()
    assert (m.fresh_accuracy == m.online_accuracy)[m.task == 0].all() and m.majority_share.between(0, 1).all() and m.final_accuracy.notna().all()
    assert m.groupby("task").counts.first().tolist() == [s.counts(t) for t in range(s.tasks)]


ONCE = dict(zip(TINY, ("ewc", "shrink_perturb", "redo", "continual_backprop", "crelu", "snr", "upgd", "hare_and_tortoise", "l1_init", "dash", "fire"))) # on each stream, a method of another kind; at once two, since test_notebooks executes all and test_studies brings every option to its run


@pytest.mark.parametrize("method, name", [pytest.param(m, n, marks=[] if ONCE[n] == m and n in ("permuted_mnist", "continual_imagenet") else pytest.mark.slow) for i, m in enumerate(methods) for n in TINY if ONCE[n] == m or (list(TINY)[i % len(TINY)] == n and m not in ONCE.values())])
def test_every_method_and_stream_by_papermill(method, name, tmp_path):
    options, network = TINY[name]
    params = dict(options, network=network, method=method, hyper=hyper_of(method), seeds=[0, 1], learning_rate=[1e-2], probes=dict(fresh=1), folder=str(tmp_path), **({} if methods[method].suits("sgd") else dict(optimizer="adam")))
    papermill_to(ROOT / "nbs" / "experiments" / f"{name}.ipynb", tmp_path / "run.ipynb", params)
    assert len(pd.read_parquet(tmp_path / "metrics.parquet")) == options["tasks"] * len(grid(method, [0, 1], [1e-2], **hyper_of(method)))


RECOUNT = dict( # 2,000 steps each
    permuted_mnist=dict(dataset="mnist5k", tasks=10, examples=3200),
    random_label_mnist=dict(dataset="mnist5k", tasks=5, examples=160, passes=40),
    random_label_cifar10=dict(dataset="photo_patches", tasks=5, examples=160, passes=40),
    five_plus_one_cifar100=dict(dataset="synthetic_images_30x56", tasks=10, each=48, examples=240, batch_size=24, passes=20),
    continual_imagenet=dict(dataset="synthetic_images_20x70", tasks=10, each=60, examples=120, batch_size=30, passes=50),
    warm_start=dict(dataset="mnist5k", tasks=4, examples=800, batch_size=20, passes=20, share=.25, noise=.5),
)


@pytest.mark.parametrize("name", [n if TINY[n][1]["name"] == "mlp" else pytest.param(n, marks=pytest.mark.slow) for n in RECOUNT])
def test_online_accuracy_recounted_by_a_plain_loop(name):
    s, network = stream(name, **RECOUNT[name]), TINY[name][1]
    assert s.all_steps == 2000
    cohort = cohort_on(s, "l2_init", network, grid("l2_init", [3], [1e-2], strength=[1e-2]), "sgd", dtype=torch.float64)
    model, recount = cohort.module(0), []
    start, opt = [p.detach().clone() for p in model.parameters()], torch.optim.SGD(model.parameters(), lr=1e-2)
    for t in range(s.tasks):
        right = shown = 0
        for x, y in s.task(t, [3]).batches():
            out = model(x[0].double())
            right, shown = right + int((out.argmax(1) == y[0]).sum()), shown + len(y[0])
            loss = F.cross_entropy(out, y[0]) + .01 / 2 * sum((p - p0).square().sum() for p, p0 in zip(model.parameters(), start))
            opt.zero_grad()
            loss.backward()
            opt.step()
        recount.append(right / shown)
    assert train(cohort, s, progress=False).online_accuracy.tolist() == pytest.approx(recount, abs=1e-6)
