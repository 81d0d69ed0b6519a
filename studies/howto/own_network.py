"""A network of one's own: patches of the image are mixed along two axes in turn, as in an MLP-Mixer."""
from torch import nn

from l2init.modules import ModuleArchitecture
from l2init.networks import Units, networks


class Mixing(nn.Module):
    "What two layers make of x, added to x; along the tokens or along their numbers."
    def __init__(self, size, hidden, turned):
        super().__init__()
        self.turned, self.norm = turned, nn.LayerNorm(size)
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))

    def forward(self, x): # [examples, numbers, tokens]
        if self.turned: x = x.mT
        x = x + self.layers(self.norm(x))
        return x.mT if self.turned else x


@networks.register("mixer")
class Mixer(ModuleArchitecture):
    "A small mixer of patches."
    patch: Units = 7 # side of the patches
    width: Units = 32 # numbers of each patch
    hidden: Units = 64 # units of each mixing

    def module(self, shape, classes):
        tokens = (shape[1] // self.patch) * (shape[2] // self.patch)
        return nn.Sequential(nn.Conv2d(shape[0], self.width, self.patch, stride=self.patch),
                             nn.Flatten(2), Mixing(tokens, self.hidden, turned=False),
                             Mixing(self.width, self.hidden, turned=True),
                             nn.Flatten(), nn.Linear(tokens * self.width, classes))
