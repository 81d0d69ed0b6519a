"""Lock-step training against the plain per-learner loop, in one run, on one thread.

Both sides do the same mathematics on the same batches of permuted MNIST digits (MLP 784-100-100-10, batch 16, Adam, L2 Init) and record
online accuracy. They take turns, and each figure is a median over the turns: the machine may be shared, so read the ratio.
"""
import argparse
import os
import time
from itertools import islice
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F

from l2init.cohorts import Cohort, grid
from l2init.streams import stream

SHAPE, CLASSES, STRENGTH, RATE = (1, 28, 28), 10, 1e-2, 1e-3


def cpu_seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start


def plain_learner(fused):
    "A step of a plain PyTorch loop for one learner."
    model = Cohort(grid("plain", [0], [RATE]), SHAPE, CLASSES, "plain").module(0)
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=fused)
    seen = torch.zeros(())

    def step(x, y):
        logits = model(x[0])
        seen.add_((logits.argmax(1) == y[0]).float().mean())
        loss = F.cross_entropy(logits, y[0]) + STRENGTH / 2 * sum((p - p0).square().sum() for p, p0 in parameters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def cohort_of(strengths, seeds, compile):
    "A step of a cohort: a grid of strengths, each with all seeds, as a study would have it."
    learners = grid("l2_init", list(range(seeds)), [RATE], strength=[STRENGTH / 2**i for i in range(strengths)])
    cohort = Cohort(learners, SHAPE, CLASSES, "l2_init", compile=compile)
    seen = torch.zeros(len(cohort))

    def step(x, y): seen.add_(cohort.step(x, y)[1])

    return cohort, step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", type=int, default=4, help="in the cohort's grid")
    parser.add_argument("--seeds", type=int, default=2, help="of each strength")
    parser.add_argument("--steps", type=int, default=200, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    s = stream("permuted_mnist", dataset="mnist5k", tasks=1, examples=4000)

    contestants = {"plain loop": (1, [0], plain_learner(False)), "plain loop, fused Adam": (1, [0], plain_learner(True))}
    for compile in (False, True):
        cohort, step = cohort_of(args.strengths, args.seeds, compile)
        contestants[f"cohort of {len(cohort)}{', compiled update' if compile else ''}"] = len(cohort), cohort.seeds, step

    def turn(seeds, step):
        for x, y in islice(s.task(0, seeds).batches(), args.steps): step(x, y)

    rates = {name: [] for name in contestants}
    for _, seeds, step in contestants.values(): turn(seeds, step) # warm up, compile
    for _ in range(args.turns):
        for name, (k, seeds, step) in contestants.items():
            rates[name].append(k * args.steps / cpu_seconds(lambda: turn(seeds, step)))

    base = median(rates["plain loop"])
    print(f"{'':32} learner-steps per CPU second    ratio\n" + "\n".join(
        f"{name:32} {median(r):12.0f}  ({min(r):.0f} to {max(r):.0f})   {median(r) / base:6.2f}" for name, r in rates.items()))


if __name__ == "__main__":
    main()
