"""Methods for five of the moments at which a part may act, for the options of a network, and of two parts."""
from typing import Annotated

import torch
from pydantic import Field

from l2init.internals.core import Options
from l2init.methods import Method, methods
from l2init.parts import Part

HERE = "studies/howto/six_moments.py"


class Most(Options):
    most: Annotated[float, Field(gt=0)]


class ShortGradient(Part):
    "`gradient`: a gradient longer than `most` is shortened to that."
    title, source, hyper = "Short gradient", HERE, Most

    def gradient(self, theta, grad, step):
        length = grad.norm(dim=1, keepdim=True)
        grad.mul_((self.values["most"] / length).clamp(max=1))


class Cautious(Part):
    "`direction`: weights that the optimizer would move along their own gradient, uphill, stay where they are."
    title, source = "Cautious", "Liang et al. 2024, without their scaling"

    def direction(self, delta, grad, step):
        delta.mul_(delta * grad < 0)


class Leash(Part):
    "`after_step`: no weight goes farther than `most` from its initial value."
    title, source, hyper = "Leash", HERE, Most

    def after_step(self, seen, step):
        theta, theta0, most = self.stack.theta, self.stack.theta0, self.values["most"]
        theta.copy_(torch.minimum(torch.maximum(theta, theta0 - most), theta0 + most))


class Share(Options):
    share: Annotated[float, Field(ge=0, le=1)]


class WayBack(Part):
    "`between_tasks`: at each boundary, weights go a share of the way back to their initial values."
    title, source, hyper = "Way back", HERE, Share

    def between_tasks(self, ended, following, step):
        self.stack.theta.lerp_(self.stack.theta0, self.values["share"])


class Averaged(Part):
    "`evaluated`: a running mean of the weights is what is measured."
    title, source, hyper = "Averaged", HERE, Share

    def start(self):
        return dict(mean=self.stack.theta.clone())

    def after_step(self, seen, step):
        self.state["mean"].lerp_(self.stack.theta, self.values["share"])

    def evaluated(self, theta):
        return self.state["mean"]


class NormalizedUnits(Part):
    "No moment, but options of the network: layer norm and CReLU together."
    title, source = "Layer norm + CReLU", HERE
    network = dict(layer_norm=True, activation="crelu")


for part in (ShortGradient, Cautious, Leash, WayBack, Averaged, NormalizedUnits):
    methods.register(part.__name__.lower(), Method(part.title, parts=[part]))
methods.register("waybackshort", Method("Way back + short gradient", HERE, parts=[ShortGradient, WayBack]))
