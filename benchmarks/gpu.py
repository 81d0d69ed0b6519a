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

SIZES = dict(mlp=(1, 16, 64, 256, 1024), cnn=(1, 8, 16, 32, 64, 128, 256), module=(1, 8, 16, 32, 64, 256))
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


def works(repetitions):
    "Learner-steps per second: work -> size of the cohort, 0 for the plain loop -> rate; the sizes take turns."
    out = {}
    for work, (_, network, _, _, _, reset) in WORKS.items():
        contestants = {} if reset else {0: plain_on_a_gpu(work)}
        for size in SIZES[network]:
            s, c = cohort(work, size, "cuda")
            contestants[size] = size * s.steps, turns(s, c, time.perf_counter)
        out[work] = middle(alternate(contestants, repetitions))
        print(f"{work:34}" + "".join(f" {k or 'plain'}: {r:.0f}" for k, r in out[work].items()), flush=True)
    return out


def of_methods(network, size, repetitions):
    "Learner-steps per second of each method in lock-step, and the methods that are not replayed from a recording."
    s, contestants, others = stream(**dict(mlp=MNIST, cnn=CIFAR)[network]), {}, {}
    for method, m in methods.items():
        hyper = {n: HYPER[n] for n in m.hyper.model_fields if n in HYPER}
        e = engine(Cohort(learners(method, hyper, size, 2), shape(s), s.outputs, method, "adam", network, "cuda"))
        if e.reasons: others[method] = str(e)
        contestants[method] = size * s.steps, turns(s, e, time.perf_counter)
    rates = middle(alternate(contestants, repetitions))
    print(f"\n{network}, {size} learners, beside plain training: " + ", ".join(f"{m} {r / rates['plain']:.2f}" for m, r in rates.items()))
    print("\n".join(others.values()), flush=True)
    return rates


def modules(repetitions, networks=MODULES, sizes=SIZES["module"], device="cuda"):
    "Learner-steps per second of cohorts of modules, as many learners at a time as there is memory for, and of the plain loop (0)."
    out = {}
    for network, options in networks.items():
        s, contestants = stream(**CIFAR), {}
        for size in sizes:
            c = Cohort(learners("l2_init", dict(strength=STRENGTH), size, 1), shape(s), s.outputs, "l2_init", "adam", network, device, **options)
            contestants[size] = size * s.steps, turns(s, engine(c), time.perf_counter)
        contestants[0] = plain_loop(s, c.module(0), "adam", STRENGTH, device)
        out[network] = middle(alternate(contestants, repetitions))
        print(f"{network}: " + ", ".join(f"{k or 'plain'}: {r:.0f}" for k, r in out[network].items()), flush=True)
    return out


def profile(size, work):
    "A table of the kernels in a task."
    turn = turns(*cohort(work, size, "cuda"), time.perf_counter)
    turn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen: seconds = turn()
    print(f"{work}: {size} learners, a task in {seconds * 1e3:.1f} ms")
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=20, max_name_column_width=70))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", type=int, metavar="LEARNERS")
    parser.add_argument("--work", choices=WORKS, default="MLP, Adam, L2 Init", help="what is profiled")
    sections = dict(works=works, mlp=partial(of_methods, "mlp", 64), modules=modules, cnn=partial(of_methods, "cnn", 16))
    parser.add_argument("--only", choices=sections, nargs="+", default=list(sections), help="the others stay as they were measured before")
    args = parser.parse_args()
    if not torch.cuda.is_available(): return print("There is no GPU here, so none is measured.")
    if args.profile: return profile(args.profile, args.work)
    out = dict(gpu=torch.cuda.get_device_name(), python=platform.python_version(), torch=version("torch"), repetitions=args.repetitions)
    before = json.loads(PATH.read_text()) if PATH.exists() else {}
    if len(args.only) < len(sections) and any(before.get(n) != v for n, v in out.items()):
        return print(f"{PATH.name} is of another GPU, Python, torch or number of repetitions: measure all sections.")
    out = before | out
    for name in args.only:
        out[name] = sections[name](args.repetitions)
        PATH.write_text(json.dumps(out, indent=1) + "\n")
    print(f"written to {PATH.name}")


if __name__ == "__main__": main()
