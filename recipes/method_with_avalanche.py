"""Any method in an Avalanche strategy: a plugin that hooks it to the optimizer, says when
a task ends, and measures the model after each experience."""
from avalanche.core import SupervisedPlugin

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


def example(method="head_reset", **options):
    "The training of `with_avalanche.py` with a method; returns the strategy and its plugin."
    from with_avalanche import example_training
    return example_training(lambda model, digits: MethodPlugin(method, digits, **options))


if __name__ == "__main__": print(example()[1].probes[-1])
