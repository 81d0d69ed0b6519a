"""What a drop-in and `measure` cost beside a step of a plain loop, on one thread of a CPU. Writes results_drop_in.json.

A drop-in's turn and a plain turn follow each other, and each figure is the median of such pairs' ratios: the machine may be shared, so read the ratios.
A method that acts at every so many steps acts at every step here; at a period of 1,000 its cost is a thousandth of what is said.
"""
import argparse
import copy
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from throughput import HYPER

from l2init.cohorts import Cohort
from l2init.drop_in import drop_in, measure
from l2init.internals.core import InputError
from l2init.methods import grid, methods
from l2init.units import units

BATCH = 16
NETWORKS = dict(mlp=((1, 28, 28), 30), cnn=((3, 32, 32), 4), resnet18=((3, 16, 16), 1)) # shape of an image, steps in a turn
MOMENTS = "before_step", "gradient", "direction", "after_step"
PATH = Path(__file__).with_name("results_drop_in.json")


class Loop:
    "A plain loop on one batch, and a method in it if there is one."

    def __init__(self, model, x, y, steps, method=None, **options):
        self.model, self.x, self.y, self.steps = copy.deepcopy(model), x, y, steps
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.handle = method and drop_in(method, self.model, self.optimizer, example=x, **options)

    def turn(self):
        "CPU seconds of a turn."
        start = time.process_time()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()
        return time.process_time() - start

    def boundary(self):
        "CPU seconds of a boundary between tasks, with one batch of either."
        start = time.process_time()
        self.handle.task_ends(ended=[(self.x, self.y)], following=[(self.x, self.y)])
        return time.process_time() - start

    def acts(self, moments): return any(self.handle.at[m] for m in moments)


def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start


def middle(ratios): return dict(median=median(ratios), low=min(ratios), high=max(ratios))


def paired(plain, turn, repetitions, per=1):
    "How long a turn takes, in steps of the plain loop just before it."
    turn() # warm up
    return middle([per / (plain.turn() / plain.steps) * turn() for _ in range(repetitions)])


def hyper_of(method): return {n: 1 if n == "period" else HYPER[n] for n in methods[method].hyper.model_fields if n in HYPER}


def of_network(name, repetitions):
    "What each method adds to a step, what a boundary takes, what `measure` and finding the units take, all in plain steps; and which methods are no drop-ins here."
    shape, steps = NETWORKS[name]
    torch.manual_seed(0)
    model = Cohort(grid("plain", [0], [1e-4]), shape, 10, "plain", network_name=name).module(0)
    x, y = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    found, plain = units(model, x), Loop(model, x, y, steps)
    plain.turn()
    out = dict(parameters=sum(p.numel() for p in model.parameters()), shape=shape, seconds=plain.turn() / steps, step={}, boundary={}, refused={})
    out["measure"] = paired(plain, lambda: seconds(lambda: measure(model, x, y, units=found)), repetitions)
    out["units"] = paired(plain, lambda: seconds(lambda: units(model, x)), repetitions)
    for method in methods:
        try: loop = Loop(model, x, y, steps, method, **hyper_of(method))
        except InputError as e:
            out["refused"][method] = str(e)
            continue
        if loop.acts(["between_tasks"]): out["boundary"][method] = paired(plain, loop.boundary, repetitions)
        if loop.acts(MOMENTS): out["step"][method] = paired(plain, loop.turn, repetitions, 1 / steps)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=NETWORKS, help="measure this network alone; nothing is written then")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    out = dict(machine=platform.machine(), cores=os.cpu_count(), python=platform.python_version(), **{p: version(p) for p in ("l2init", "torch")}, batch=BATCH, repetitions=args.repetitions, networks={})
    for name in [args.only] if args.only else NETWORKS:
        out["networks"][name] = of = of_network(name, args.repetitions)
        print(f"{name}, {of['parameters']:,} parameters, {of['seconds'] * 1e3:.1f} ms a step; measure {of['measure']['median']:.2f} steps, units {of['units']['median']:.1f}")
        for what, less in dict(step=1, boundary=0).items():
            print(f"  {what}: " + ", ".join(f"{m} {t['median'] - less:+.2f}" for m, t in of[what].items()))
        print("  no drop-ins here: " + ", ".join(of["refused"]), flush=True)
    if args.only: return
    PATH.write_text(json.dumps(out, indent=1) + "\n")
    print(f"written to {PATH.name}")


if __name__ == "__main__": main()
