import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg") # inherited by what the tests start

# A value for each hyper-parameter that has no default, so that every method can be tried.
HYPER = dict(strength=[.1, .01], delta=[.05], shrink=[.1, .01], noise=[.01], period=[7, 9], threshold=[.5], replacement_rate=[.1, .01], maturity=[5], importance=[10., 1.])


def hyper_of(method):
    from l2init.cohorts import methods
    return {n: HYPER[n] for n in methods[method].hyper.model_fields if n in HYPER}


# Each stream, tiny: options, and the options of its network.
TINY = dict(
    permuted_mnist=(dict(dataset="mnist5k", tasks=3, examples=64), dict(name="mlp", hidden=[10])),
    random_label_mnist=(dict(dataset="mnist5k", tasks=3, examples=32, passes=2), dict(name="mlp", hidden=[10])),
    random_label_cifar10=(dict(dataset="photo_patches", tasks=3, examples=32, passes=2), dict(name="cnn", channels=[3, 4], hidden=[8])),
    five_plus_one_cifar100=(dict(dataset="synthetic_images_12x14", tasks=3, each=12, examples=60, batch_size=8, passes=1), dict(name="cnn", channels=[3, 4], hidden=[8])),
    continual_imagenet=(dict(dataset="synthetic_images_6x42", tasks=3, each=36, examples=72, batch_size=24, passes=2), dict(name="cnn", channels=[3, 4], hidden=[8])),
)
