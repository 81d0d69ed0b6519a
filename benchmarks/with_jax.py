"""The same MLP, Adam and L2 Init in JAX: `vmap` over learners, `scan` over steps, `jit`. Prints learner-steps per wall second.

Usage: with_jax.py LEARNERS STEPS DIGITS, where DIGITS is an .npz file with batches x [batches, 2 seeds, 16, 784] and labels y.
"""
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

STRENGTH, RATE, SIZES, SEEDS = 1e-2, 1e-3, (784, 100, 100, 10), 2


def forward(p, x):
    for w, b in p[:-1]: x = jax.nn.relu(x @ w + b)
    return x @ p[-1][0] + p[-1][1]


def loss(p, p0, x, y):
    logits = forward(p, x)
    penalty = sum(jnp.square(a - b).sum() for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(p0)))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean() + STRENGTH / 2 * penalty, (logits.argmax(1) == y).mean()


def learner_step(state, batch):
    p, p0, m, v, t, right = state
    (_, accuracy), g = jax.value_and_grad(loss, has_aux=True)(p, p0, *batch)
    t = t + 1
    m = jax.tree.map(lambda m, g: .9 * m + .1 * g, m, g)
    v = jax.tree.map(lambda v, g: .999 * v + .001 * g * g, v, g)
    p = jax.tree.map(lambda p, m, v: p - RATE * (m / (1 - .9 ** t)) / (jnp.sqrt(v / (1 - .999 ** t)) + 1e-8), p, m, v)
    return p, p0, m, v, t, right + accuracy


@jax.jit
def chunk(state, x, y, row): # x [steps, SEEDS, 16, 784]; row [K]: the seed of each learner
    return jax.lax.scan(lambda s, batch: (jax.vmap(learner_step)(s, (batch[0][row], batch[1][row])), None), state, (x, y))[0]


def initial(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    return [(jax.random.uniform(k, (i, o), minval=-i ** -.5, maxval=i ** -.5), jnp.zeros(o)) for k, i, o in zip(keys, SIZES, SIZES[1:])]


def main(learners, steps, digits):
    p = jax.vmap(initial)(jax.random.split(jax.random.key(0), learners))
    zeros = lambda: jax.tree.map(jnp.zeros_like, p)
    state = p, p, zeros(), zeros(), jnp.zeros(learners), jnp.zeros(learners)
    x, y = (jnp.asarray(np.load(digits)[n]) for n in "xy")
    row = jnp.arange(learners) * SEEDS // learners
    jax.block_until_ready(chunk(state, x, y, row))
    start, n = time.perf_counter(), max(1, steps // len(x))
    for _ in range(n): state = chunk(state, x, y, row)
    jax.block_until_ready(state)
    print(learners * n * len(x) / (time.perf_counter() - start))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
