"""Learns a little with everything that has a kernel, in one type of numbers, e.g. `python compile_kernels.py float32`: Numba keeps what it compiles in __pycache__."""
import sys

import torch
from conftest import TINY, hyper_of

from l2init.cohorts import Cohort
from l2init.internals.engines import engine
from l2init.methods import grid, methods
from l2init.training import train
from l2init.optimizers import optimizers
from l2init.streams import stream


def compile_kernels(dtype):
    for name in ("random_label_mnist", "random_label_cifar10"):
        options, network = TINY[name]
        s, net = stream(name, **{**options, "tasks": 1}), {n: v for n, v in network.items() if n != "name"}
        for method in methods:
            learners = grid(method, [0, 1], [1e-3], **hyper_of(method))
            for optimizer in filter(methods[method].suits, optimizers):
                cohort = Cohort(learners, s.data().images.shape[1:], s.outputs, method, optimizer, network["name"], dtype=dtype, **net)
                if method == "plain": train(cohort, s, progress=False) # and what is probed
                engine(cohort).learn(s.task(0, cohort.seeds))


if __name__ == "__main__": compile_kernels(getattr(torch, sys.argv[1]))
