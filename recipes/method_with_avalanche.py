"""Any method in an Avalanche strategy: a plugin that hooks it to the optimizer, says when
a task ends, and measures the model after each experience."""
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from l2init.drop_in import drop_in, measure
from l2init.units import units


class MethodPlugin(SupervisedPlugin):
    """A method, such as "redo", for any supervised strategy whose model keeps its layers;
    `probes` has a dictionary for each experience. `handle.remove()` ends it."""
    def __init__(self, method, example, **options):
        super().__init__()
        self.method, self.example, self.options = method, example, options
        self.model, self.handle, self.probes = None, None, []

    def before_training_exp(self, strategy, **kwargs):
        # a strategy's first experience begins, or another one
        if self.model is strategy.model: return self.handle.task_ends()
        self.model, self.example = strategy.model, self.example.to(strategy.device)
        self.units = units(strategy.model, self.example)
        self.handle = drop_in(self.method, strategy.model, strategy.optimizer,
                              example=self.example, **self.options)

    def after_training_exp(self, strategy, **kwargs):
        self.probes.append(measure(strategy.model, self.example, units=self.units))


def example(method="head_reset", tasks=3, seed=0, **options):
    "Naive fine-tuning on permuted MNIST digits, an experience for each task; returns the strategy and its plugin."
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin
    from l2init.streams import stream
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    s = stream("permuted_mnist", dataset="mnist5k", tasks=tasks, examples=400)
    tensors = lambda parts: [tuple(v[0] for v in part) for part in parts]  # of the one seed
    benchmark = tensors_benchmark(train_tensors=tensors(s.task(t, [seed]).train for t in range(tasks)), test_tensors=tensors(s.task(t, [seed]).test for t in range(tasks)), task_labels=[0] * tasks)
    plugin = MethodPlugin(method, s.task(0, [seed]).test[0][0][:64], **options)
    strategy = Naive(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), criterion=nn.CrossEntropyLoss(), train_mb_size=16, plugins=[plugin], evaluator=EvaluationPlugin())
    for experience in benchmark.train_stream: strategy.train(experience, num_workers=0)
    return strategy, plugin


if __name__ == "__main__": print(example()[1].probes[-1])
