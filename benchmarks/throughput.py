"""Lock-step training against the plain per-learner loop, in one run: CPU seconds of one thread.

Both sides do the same mathematics on the same batches and record online accuracy. They take turns, and each figure is a median over the turns: the machine may be shared, so read the ratios.
Then comes each method in lock-step beside plain training in lock-step, an estimated bound for dense products (the step's own matrix products and one pass of the optimizer in isolation), peak memory, a small study's share of wall time in steps, the whole machine against JAX on the same digits, and what the paper's comparison would take in each way.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from statistics import median
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from plain import ContinualBackprop, PlainLearner, ReDo, ShrinkPerturb

from l2init.cohorts import Cohort
from l2init.internals import kernels
from l2init.internals.engines import Engine, engine
from l2init.methods import grid, methods
from l2init.networks import in_a_loop
from l2init.streams import stream
from l2init.studies import plan

STRENGTH, RATE = 1e-2, 1e-3
OPTIMIZERS = dict(adam=partial(torch.optim.Adam, lr=RATE, fused=True), sgd=partial(torch.optim.SGD, lr=RATE, fused=True))
MNIST = dict(name="permuted_mnist", dataset="mnist5k", examples=3200)
ONLINE = dict(name="online_permuted_mnist", dataset="mnist5k", examples=400)
CIFAR = dict(name="random_label_cifar10", dataset="photo_patches", examples=480, passes=2)
IMAGENET = dict(name="continual_imagenet", dataset="synthetic_images_2x700", tasks=1, each=600, examples=1200, passes=2)
WORKS = { # name -> stream, network, optimizer, method, its hyper-parameters, the plain loop's reset
    "MLP, Adam, L2 Init": (MNIST, "mlp", "adam", "l2_init", dict(strength=STRENGTH), None),
    "MLP, SGD, L2 Init": (MNIST, "mlp", "sgd", "l2_init", dict(strength=STRENGTH), None),
    "MLP, SGD, L2 Init, batch 1": (ONLINE, "mlp", "sgd", "l2_init", dict(strength=STRENGTH), None),
    "MLP, Adam, L2 Init, dense inputs": (CIFAR, "mlp", "adam", "l2_init", dict(strength=STRENGTH), None),
    "MLP, Adam, ReDo": (MNIST, "mlp", "adam", "redo", dict(threshold=.1, period=200), partial(ReDo, 200, .1)),
    "MLP, Adam, Shrink & Perturb": (MNIST, "mlp", "adam", "shrink_perturb", dict(shrink=1e-3, noise=1e-2), partial(ShrinkPerturb, 1e-3, 1e-2)),
    "MLP, Adam, continual backprop": (MNIST, "mlp", "adam", "continual_backprop", dict(replacement_rate=1e-3), partial(ContinualBackprop, 1e-3)),
    "CNN, Adam, L2 Init, batch 16": (CIFAR, "cnn", "adam", "l2_init", dict(strength=STRENGTH), None),
    "CNN, Adam, L2 Init, batch 100": (IMAGENET, "cnn", "adam", "l2_init", dict(strength=STRENGTH), None),
}


HYPER = dict(strength=STRENGTH, delta=.1, shrink=1e-3, noise=1e-2, period=200, threshold=.1, replacement_rate=1e-3, importance=10., share=.1, percentile=.7, update_every=1, lowest=16, highest=48)


def learners(method, hyper, size, seeds):
    "A grid of `size` learners: every seed with the same number of learning rates, so that all methods learn from the same examples."
    return grid(method, list(range(seeds)), [RATE * (1 + i / 100) for i in range(size // seeds)], **{name: [value] for name, value in hyper.items()})


def learners_of(method, size):
    "A grid of a method whose hyper-parameters without a default have the values of `HYPER`."
    return learners(method, {n: HYPER[n] for n in methods[method].hyper.model_fields if n in HYPER}, size, 2)


def shape(s): return tuple(s.task(0, [0]).examples[0].shape[2:])


def cohort(work, size, device="cpu"):
    "A work's stream, and the engine of a cohort of `size` learners."
    options, network, optimizer, method, hyper, _ = WORKS[work]
    s = stream(**options)
    return s, engine(Cohort(learners(method, hyper, size, 2 if size > 1 else 1), shape(s), s.outputs, method, optimizer, network, device))


def plain(work):
    options, network, optimizer, method, hyper, reset = WORKS[work]
    s = stream(**options)
    model = Cohort(grid("plain", [0], [RATE]), shape(s), s.outputs, "plain", network_name=network).module(0)
    if network == "cnn": model = model.to(memory_format=torch.channels_last)
    return s, PlainLearner(model, OPTIMIZERS[optimizer], hyper.get("strength", 0.), reset() if reset else None)


def turns(s, learner, clock=time.process_time):
    "A function that lets a cohort or a plain learner go through a task, the next one each time, and measures seconds, of the CPU unless `clock` is another."
    tasks = count()
    def turn():
        task = s.task(next(tasks) % s.tasks, learner.cohort.seeds if isinstance(learner, Engine) else [0])
        task.examples[1].cpu() # made before the clock starts: synthetic images are drawn
        start = clock()
        if isinstance(learner, Engine): learner.learn(task)["online_loss"].cpu() # waits for a GPU
        else:
            for x, y in task.batches(): learner.step(x[0], y[0])
        return clock() - start
    return turn


def alternate(contestants, repetitions):
    "Learner-steps per CPU second of contestants (name -> learner-steps in a turn, turn) who take turns: name -> all turns."
    rates = {name: [] for name in contestants}
    for _, turn in contestants.values(): turn() # warm up
    for _ in range(repetitions):
        for name, (work, turn) in contestants.items(): rates[name].append(work / turn())
    return rates


def middle(rates): return {name: median(r) for name, r in rates.items()}


def spread(rates):
    "How far the turns of a contestant are apart, as a share of their median; the largest of all contestants."
    return max((max(r) - min(r)) / median(r) for r in rates.values())


def of_methods(network, size, repetitions):
    "Learner-steps per CPU second of each method in lock-step."
    options = dict(mlp=MNIST, cnn=CIFAR)[network]
    s, contestants = stream(**options), {}
    for method in methods:
        cohort = Cohort(learners_of(method, size), shape(s), s.outputs, method, "adam", network)
        contestants[method] = size * s.steps, turns(s, engine(cohort))
    return alternate(contestants, repetitions)


def profile(network, size, names, repetitions):
    "Of each method: milliseconds of a step of all learners in each compiled loop, and in what lies between them."
    s, spent, out = stream(**dict(mlp=MNIST, cnn=CIFAR)[network]), Counter(), {}
    def timed(name, f):
        def run(*args):
            start = time.process_time()
            f(*args)
            spent[name] += time.process_time() - start
        return run
    loops = {n: timed(n, getattr(kernels, n)) for n in kernels.__all__ if callable(getattr(kernels, n))}
    for method in names:
        turn = turns(s, engine(Cohort(learners_of(method, size), shape(s), s.outputs, method, "adam", network)))
        turn() # warm up
        spent.clear()
        with patch.multiple(kernels, **loops): whole = sum(turn() for _ in range(repetitions))
        per_step = {n: 1e3 * t / repetitions / s.steps for n, t in spent.items()}
        out[method] = per_step | {"between them": 1e3 * whole / repetitions / s.steps - sum(per_step.values())}
    return out


def against_plain(work, sizes, repetitions):
    "Learner-steps per CPU second of the plain loop (0) and of cohorts of some sizes."
    contestants = {}
    for size in (0, *sizes):
        s, learner = cohort(work, size) if size else plain(work)
        contestants[size] = max(size, 1) * s.steps, turns(s, learner)
    return alternate(contestants, repetitions)


def floor(size, repetitions):
    "An estimated bound: learner-steps per CPU second if a step of the MLP with Adam and L2 Init were dense matrix products, by the library's or by our loops, and one pass over weights, anchors and moments."
    c = cohort("MLP, Adam, L2 Init", size)[1].cohort
    layers = [(p, g) for p, g in zip(c.params, c.grads) if p]
    inputs, errors = [torch.rand(size, 16, p["weight"].shape[1]) for p, _ in layers], [torch.rand(size, 16, p["weight"].shape[2]) for p, _ in layers]
    def library():
        for i, ((p, g), x, dy) in enumerate(zip(layers, inputs, errors)):
            torch.bmm(x, p["weight"])
            torch.bmm(x.mT, dy, out=g["weight"])
            if i: torch.bmm(dy, p["weight"].mT)
    outputs = [(torch.empty_like(dy), torch.empty_like(x) if i else x[:0]) for i, (x, dy) in enumerate(zip(inputs, errors))]
    def loops():
        for (p, g), x, dy, (y, dx) in zip(layers, inputs, errors, outputs):
            in_a_loop("linear", x, p["weight"], p["bias"], y)
            in_a_loop("linear_backward", x, p["weight"], dy, g["weight"], g["bias"], dx)
    def update(): c.optimizer.fast_update(c.theta, c.grad, c.descent.state, c.lr, c.theta0, c.hyper["strength"])
    def turn(f, n=100):
        start = time.process_time()
        for _ in range(n): f()
        return time.process_time() - start
    rates = middle(alternate({f.__name__: (100 * size, partial(turn, f)) for f in (library, loops, update)}, repetitions))
    return dict(rate=1 / (1 / max(rates["library"], rates["loops"]) + 1 / rates["update"]), size=size, **rates)


def whole_machine(size, steps, workers):
    "Learner-steps per wall second of `size` learners on all cores, as studies run them: one process with one thread for each core."
    command = [sys.executable, __file__, "--part", str(size // workers), str(steps)]
    parts = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    for p in parts: p.stdout.readline() # they are ready
    start = time.perf_counter()
    for p in parts: p.stdin.write("go\n"); p.stdin.flush()
    for p in parts: p.wait()
    return size // workers * workers * steps / (time.perf_counter() - start)


def part(size, steps):
    s, c = cohort("MLP, Adam, L2 Init", size)
    turn = turns(s, c)
    turn()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(steps // s.steps): turn()
    print(*[line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")] if sys.platform == "linux" else [0])


def peak_memory(size):
    "The most kilobytes that a process with `size` learners had in memory."
    return int(subprocess.run([sys.executable, __file__, "--part", str(size), "400"], input="go\n", capture_output=True, text=True, check=True).stdout.split()[-1])


STUDY = """
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
plugins = ["timed.py"]
[[streams]]
name = "random_label_mnist"
dataset = "mnist5k"
labels = "uniform"
tasks = 30
examples = 160
passes = 200
[[streams]]
name = "random_label_mnist"
dataset = "mnist5k"
labels = "permuted"
tasks = 30
examples = 160
passes = 200
[[methods]]
name = "l2_init"
strength = [1e-2, 1e-3, 1e-4, 1e-5]
[[optimizers]]
name = "adam"
learning_rate = [1e-3]
"""

TIMED = """
import time
from pathlib import Path
from l2init.internals.engines import Engine
learn = Engine.learn
def timed(self, task):
    start = time.perf_counter()
    out = learn(self, task)
    with Path("seconds").open("a") as f: f.write(f"{time.perf_counter() - start}\\n")
    return out
Engine.learn = timed
"""


def share_of_steps():
    "Of the wall time of a small study with a worker for each of two runs: the share in training steps. The rest is kernels, papermill, probes and writing."
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "nbs").symlink_to(Path(__file__).resolve().parents[1] / "nbs")
        (project / "study.toml").write_text(STUDY)
        (project / "timed.py").write_text(TIMED)
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("l2init"), "run", "study.toml", "--workers", "2"], cwd=project, check=True, capture_output=True)
        wall = time.perf_counter() - start
        steps = sum(float(line) for file in project.glob("runs/study/**/seconds") for line in file.read_text().split())
    return dict(wall=wall, workers=2, steps=steps, share=steps / (2 * wall))


def with_jax(size, steps, repetitions, workers):
    "Learner-steps per wall second on the whole machine, from the same digits: ours at `size` learners, and JAX's at several sizes."
    sizes = (4, 8, 16, 48)
    ours, theirs = [], {k: [] for k in sizes}
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits.npz"
        x, y = zip(*islice(stream(**MNIST).task(0, [0, 1]).batches(), 100))
        np.savez(digits, x=torch.stack(x).flatten(3).numpy(), y=torch.stack(y).numpy())
        def jax_rate(k): return float(subprocess.run([sys.executable, Path(__file__).with_name("with_jax.py"), str(k), str(steps), digits], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(workers)}).stdout)
        for _ in range(repetitions):
            ours.append(whole_machine(size, steps, workers))
            for k in sizes: theirs[k].append(jax_rate(k))
    return median(ours), {k: median(r) for k, r in theirs.items()}


def papers_comparison(out):
    "Hours that the paper's comparison on permuted MNIST would take on all cores: with the plain loop, with JAX, and here. Methods that a loop was not measured with count as L2 Init."
    planned = plan(Path(__file__).resolve().parents[1] / "studies/paper/permuted_mnist.toml", data=False)
    work = {m: sum(r.steps * r.learners for r in planned if r.params["method"] == m) for m in {r.params["method"] for r in planned}}
    known = {WORKS[w][3]: v["plain"] for w, v in out["works"].items() if w.startswith("MLP, Adam") and "dense" not in w}
    cores, jax = out["cores"], max(out["whole machine"]["jax"].values())
    hours = {"plain loop": sum(n / known.get(m, known["l2_init"]) for m, n in work.items()) / cores / 3600,
             "JAX": sum(work.values()) / jax / 3600,
             "l2init": sum(n / out["methods"]["mlp"][m] for m, n in work.items()) / cores / 3600}
    return dict(learner_steps=sum(work.values()), hours=hours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", help="a part of the names of the works to measure; nothing is written then")
    parser.add_argument("--part", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.part: return part(*args.part)

    out = dict(machine=platform.machine(), cores=os.cpu_count(), python=platform.python_version(), **{p: version(p) for p in ("l2init", "torch", "numba")}, repetitions=args.repetitions, works={})
    print(f"{'learner-steps per CPU second':32} {'plain loop':>12} {'lock-step':>12} {'learners':>9} {'ratio':>7}")
    for work in (w for w in WORKS if not args.only or args.only in w):
        turns_of = against_plain(work, (6, 24, 48) if "MLP" in work else (2, 4, 8), args.repetitions)
        rates = middle(turns_of)
        best = max((k for k in rates if k), key=rates.get)
        out["works"][work] = dict(plain=rates[0], cohorts={k: r for k, r in rates.items() if k}, best=best, ratio=rates[best] / rates[0], spread=spread(turns_of))
        print(f"{work:32} {rates[0]:12.0f} {rates[best]:12.0f} {best:9} {rates[best] / rates[0]:7.2f}  turns within {spread(turns_of):.0%}", flush=True)
    if args.only: return

    out["methods"] = {}
    for network, size in dict(mlp=24, cnn=8).items():
        turns_of = of_methods(network, size, args.repetitions)
        out["methods"][network] = rates = middle(turns_of)
        print(f"\n{network}, in lock-step beside plain training (turns within {spread(turns_of):.0%}): " + ", ".join(f"{m} {r / rates['plain']:.2f}" for m, r in rates.items()), flush=True)
    out["profile"] = profile("cnn", 8, ("plain", "layer_norm", "crelu"), args.repetitions)
    rates = middle(against_plain("MLP, Adam, L2 Init", (1, 2, 4, 8, 16, 48, 192), args.repetitions))
    out["sizes"] = {k: r for k, r in rates.items() if k}
    out["floor"] = max((floor(size, args.repetitions) for size in (1, 2, 6)), key=lambda f: f["rate"])
    turn = turns(*cohort("MLP, Adam, L2 Init", 48))
    turn()
    halves = [sum(turn() for _ in range(n)) for _ in range(args.repetitions) for n in (2, 4)]
    out["twice the tasks"] = median(b / a for a, b in zip(halves[::2], halves[1::2]))
    print("\nby size of the cohort: " + ", ".join(f"{k}: {r:.0f}" for k, r in out["sizes"].items()))
    f = out["floor"]
    print(f"estimated bound for dense products (best of 1, 2 and 6 learners at once: {f['size']}): {f['rate']:.0f} ({', '.join(f'{n} alone {f[n]:.0f}' for n in ('library', 'loops', 'update'))}); reached: {max(out['sizes'].values()) / f['rate']:.0%}")
    print(f"twice the tasks take {out['twice the tasks']:.2f} times as long")
    memory = {k: peak_memory(k) / 1024 for k in (8, 48, 192)}
    out["memory"] = dict(megabytes=memory, per_learner=(memory[192] - memory[48]) / (192 - 48), per_learner_before=(memory[48] - memory[8]) / (48 - 8))
    out["study"] = share_of_steps()
    print("peak memory: " + ", ".join(f"{k} learners {m:.0f} MiB" for k, m in memory.items()) + f"; each further learner {out['memory']['per_learner_before']:.2f} MiB up to 48, {out['memory']['per_learner']:.2f} MiB up to 192")
    print(f"a study of {out['study']['wall']:.0f} s: {out['study']['share']:.0%} of the time of its workers in training steps")
    if find_spec("jax") is None: print("\nJAX is not installed (it is the extra `bench`), so it is not measured, and nothing is written.")
    else:
        workers = os.cpu_count()
        ours, theirs = with_jax(48, 2000, args.repetitions, workers)
        out["whole machine"] = dict(ours=ours, jax=theirs, jax_version=version("jax"), ratio=ours / max(theirs.values()))
        print(f"\nwhole machine, learner-steps per wall second: 48 learners {ours:.0f}; JAX " + ", ".join(f"{k}: {r:.0f}" for k, r in theirs.items()) + f"; ratio to its best {ours / max(theirs.values()):.2f}")
        out["paper"] = papers_comparison(out)
        print("studies/paper/permuted_mnist.toml, hours on all cores: " + ", ".join(f"{n} {h:.1f}" for n, h in out["paper"]["hours"].items()))
        path = Path(__file__).with_name("results.json")
        path.write_text(json.dumps(out, indent=1) + "\n")
        print(f"written to {path.name}")


if __name__ == "__main__":
    main()
