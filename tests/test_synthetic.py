"""The synthetic images stand in for natural ones: a convolutional network learns their classes, a linear model does clearly worse."""
import torch

from l2init.cohorts import Cohort
from l2init.methods import grid
from l2init.training import train
from l2init.streams import stream


def test_a_cnn_learns_and_a_linear_model_does_not():
    torch.set_num_threads(1)
    s = stream("continual_imagenet", dataset="synthetic_images_4x700", tasks=1)
    accuracy = {name: train(Cohort(grid("plain", [0, 1], [1e-3]), (3, 32, 32), s.outputs, "plain", network_name=name, **options), s, progress=False).end_accuracy.mean()
                for name, options in (("cnn", {}), ("mlp", dict(hidden=[])))}
    assert accuracy["cnn"] > .9 > .8 > accuracy["mlp"], accuracy
