"""Log Init: L2 Init whose pull fades with the distance, so that a weight that has found its place is let go."""
import torch

from l2init.methods import Method, methods
from l2init.regularizers import Penalty


class LogInit(Penalty):
    title, source, formula = "Log Init", "studies/howto/log_init.py", "½ λ Σ log(1 + (θ − θ₀)²)"
    @staticmethod
    def value(d): return torch.log1p(d.square()) / 2
    @staticmethod
    def slope(d): return d / (1 + d.square())


methods.register("log_init", Method("Log Init", parts=[LogInit]))
