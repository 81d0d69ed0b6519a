"""Where small learners end, against kept numbers: a change of the code that changes results is seen. `python tests/test_trajectories.py` keeps them anew."""
import json
from pathlib import Path

import pytest
import torch
from conftest import hyper_of

from l2init.cohorts import Cohort
from l2init.methods import grid, methods
from l2init.streams import stream
from l2init.training import train

KEPT = Path(__file__).with_name("trajectories.json")
NETWORKS = dict(mlp=dict(hidden=[12, 9]), cnn=dict(channels=[3], kernels=[5], hidden=[8]))
CASES = [f"{method} {network} {optimizer}" for method in methods for network in NETWORKS for optimizer in ("adam", "sgd") if methods[method].suits(optimizer)]


def end_of(case):
    "Of two learners, the size of all weights and the mean loss of both tasks, as the step is defined and in double precision."
    method, network, optimizer = case.split()
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=72, passes=4, last_batch="keep")
    hyper = {n: v[:1] for n, v in hyper_of(method).items()}
    learners = grid(method, [1, 2], [1e-2], **hyper)
    cohort = Cohort(learners, (1, 28, 28), 10, method, optimizer, network, dtype=torch.float64, **NETWORKS[network])
    metrics = train(cohort, s, progress=False, engines=())
    return [*cohort.theta.abs().sum(1).tolist(), *metrics.online_loss.astype(float)]


@pytest.mark.parametrize("case", CASES)
def test_learners_end_where_they_ended(case):
    assert end_of(case) == pytest.approx(json.loads(KEPT.read_text())[case], rel=1e-5)


if __name__ == "__main__": KEPT.write_text(json.dumps({case: end_of(case) for case in CASES}, indent=1) + "\n")
