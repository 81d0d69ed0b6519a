import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg") # inherited by what the tests start

# A value for each hyper-parameter that has no default, so that every method can be tried.
HYPER = dict(strength=[.1, .01], delta=[.05], shrink=[.1, .01], noise=[.01], period=[7, 9], threshold=[.5], replacement_rate=[.1, .01], maturity=[5])


def hyper_of(method):
    from l2init.cohorts import methods
    return {n: HYPER[n] for n in methods[method].hyper.model_fields if n in HYPER}
