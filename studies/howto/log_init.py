"""Log Init: L2 Init whose pull fades with the distance, so that a weight that has found its place is let go."""
import torch
from l2init.cohorts import Method, methods
from l2init.regularizers import Penalty, penalties

def value(d): return torch.log1p(d.square()) / 2
def gradient(d): return d / (1 + d.square())

penalties.register("log_init", Penalty("Log Init", value, gradient, anchor="init", source="studies/howto/log_init.py"))
methods.register("log_init", Method("Log Init", "studies/howto/log_init.py", penalty="log_init"))
