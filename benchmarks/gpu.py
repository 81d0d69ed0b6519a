"""Lock-step training on a GPU: learner-steps per second of wall time, beside the plain per-learner loop on the same GPU. Writes results_gpu.json.

`--profile` shows instead which kernels a task spends its time in.
"""
import argparse
import json
import platform
import time
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from plain import PlainLearner
from throughput import CIFAR, HYPER, MNIST, OPTIMIZERS, STRENGTH, WORKS, alternate, cohort, learners, middle, plain, shape, turns

from l2init.cohorts import Cohort
from l2init.internals.engines import engine
from l2init.methods import methods
from l2init.streams import stream

SIZES = dict(mlp=(1, 16, 64, 256, 1024), cnn=(1, 16, 64, 256), module=(1, 16, 64, 256))
PATH = Path(__file__).with_name("results_gpu.json")
MODULES = dict(resnet18=dict(width=16), vit_small={})


def plain_loop(s, model, optimizer, strength, device="cuda"):
    "A plain per-learner loop, whose examples are on the device before, as a careful user would have them."
    learner, tasks = PlainLearner(model.to(device), OPTIMIZERS[optimizer], strength, None), count()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    def turn():
        batches = [(x[0], y[0]) for x, y in s.task(next(tasks) % s.tasks, torch.tensor([0], device=device)).batches()]
        wait()
        start = time.perf_counter()
        for x, y in batches: learner.step(x, y)
        wait()
        return time.perf_counter() - start
    return s.steps, turn


def plain_on_a_gpu(work):
    s, learner = plain(work)
    return plain_loop(s, learner.model, WORKS[work][2], WORKS[work][4].get("strength", 0.))


def of_work(work, repetitions):
    "Learner-steps per second: size of the cohort, 0 for the plain loop -> rate; the sizes take turns."
    _, network, _, _, _, reset = WORKS[work]
    contestants = {} if reset else {0: plain_on_a_gpu(work)}
    for size in SIZES[network]:
        s, c = cohort(work, size, "cuda")
        contestants[size] = size * s.steps, turns(s, c, time.perf_counter)
    return middle(alternate(contestants, repetitions))


def of_methods(network, repetitions, size):
    "Learner-steps per second of each method in lock-step, and the methods that are not replayed from a recording."
    s, contestants, others = stream(**dict(mlp=MNIST, cnn=CIFAR)[network]), {}, {}
    for method, m in methods.items():
        hyper = {n: HYPER[n] for n in m.hyper.model_fields if n in HYPER}
        e = engine(Cohort(learners(method, hyper, size, 2), shape(s), s.outputs, method, "adam", network, "cuda"))
        if e.reasons: others[method] = str(e)
        contestants[method] = size * s.steps, turns(s, e, time.perf_counter)
    rates = middle(alternate(contestants, repetitions))
    print("\n".join(others.values()))
    return rates


def of_module(network, repetitions, options, sizes=SIZES["module"], device="cuda"):
    "As `of_work`, of cohorts of modules: as many learners at a time as there is memory for."
    s, contestants = stream(**CIFAR), {}
    for size in sizes:
        c = Cohort(learners("l2_init", dict(strength=STRENGTH), size, 1), shape(s), s.outputs, "l2_init", "adam", network, device, **options)
        contestants[size] = size * s.steps, turns(s, engine(c), time.perf_counter)
    contestants[0] = plain_loop(s, c.module(0), "adam", STRENGTH, device)
    return middle(alternate(contestants, repetitions))


def profile(size, work):
    "A table of the kernels in a task."
    turn = turns(*cohort(work, size, "cuda"), time.perf_counter)
    turn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen: seconds = turn()
    print(f"{work}: {size} learners, a task in {seconds * 1e3:.1f} ms")
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=20, max_name_column_width=70))


MEASURED = { # what -> section of the file, how
    **{w: ("works", partial(of_work, w)) for w in WORKS},
    **{n: ("modules", partial(of_module, n, options=options)) for n, options in MODULES.items()},
    **{n: ("methods", partial(of_methods, n, size=size)) for n, size in dict(mlp=64, cnn=16).items()},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", type=int, metavar="LEARNERS")
    parser.add_argument("--work", choices=WORKS, default="MLP, Adam, L2 Init", help="what is profiled")
    parser.add_argument("--only", choices=MEASURED, nargs="+", default=list(MEASURED), help="the rest stays as it was measured before")
    args = parser.parse_args()
    if not torch.cuda.is_available(): return print("There is no GPU here, so none is measured.")
    if args.profile: return profile(args.profile, args.work)
    here = dict(gpu=torch.cuda.get_device_name(), python=platform.python_version(), torch=version("torch"), repetitions=args.repetitions)
    before = json.loads(PATH.read_text()) if PATH.exists() else {}
    if len(args.only) < len(MEASURED) and any(before.get(n) != v for n, v in here.items()):
        return print(f"{PATH.name} is of another GPU, Python, torch or number of repetitions: measure all.")
    out = before | here
    for name in args.only: # each is kept as soon as it is there
        section, measure = MEASURED[name]
        rates = out.setdefault(section, {})[name] = measure(args.repetitions)
        PATH.write_text(json.dumps(out, indent=1) + "\n")
        print(f"{name:34}" + ", ".join(f"{k or 'plain'}: {r:.0f}" for k, r in rates.items()), flush=True)
    print(f"written to {PATH.name}")


if __name__ == "__main__": main()
