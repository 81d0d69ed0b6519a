"""L2 Init in an Avalanche strategy: a plugin that adds the penalty to the loss."""
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from l2init.regularizers import L2Init


class L2InitPlugin(SupervisedPlugin):
    """The penalty in the loss of any supervised strategy. A head that grows with new classes has
    to be left out with `skip`."""
    def __init__(self, model, strength=1e-2, skip=None):
        super().__init__()
        # before training: it takes its anchors here
        self.reg = L2Init(model, strength=strength, skip=skip)

    def before_training(self, strategy, **kwargs): self.reg.to(strategy.device)

    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss + self.reg()


def example_training(plugin_of, tasks=3, seed=0):
    "Naive fine-tuning on permuted MNIST digits, an experience for each task, with what `plugin_of(model, digits)` makes; returns the strategy and its plugin."
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin
    from l2init.streams import stream
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    s = stream("permuted_mnist", dataset="mnist5k", tasks=tasks, examples=400)
    tensors = lambda parts: [tuple(v[0] for v in part) for part in parts]  # of the one seed
    benchmark = tensors_benchmark(train_tensors=tensors(s.task(t, [seed]).train for t in range(tasks)), test_tensors=tensors(s.task(t, [seed]).test for t in range(tasks)), task_labels=[0] * tasks)
    plugin = plugin_of(model, s.task(0, [seed]).test[0][0][:64])
    strategy = Naive(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), criterion=nn.CrossEntropyLoss(), train_mb_size=16, plugins=[plugin], evaluator=EvaluationPlugin())
    for experience in benchmark.train_stream: strategy.train(experience, num_workers=0)
    return strategy, plugin


def example(strength=1e-2): return example_training(lambda model, digits: L2InitPlugin(model, strength))


if __name__ == "__main__": print(f"penalty at the end: {example()[1].reg().item():.4f}")
