import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg") # inherited by what the tests start


@pytest.fixture
def root(): return ROOT
