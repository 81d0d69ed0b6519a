"""Any method in Lightning: a callback that hooks it to a LightningModule's optimizer, and
logs what state the network is in."""
import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from l2init.drop_in import drop_in, measure
from l2init.units import units


class MethodCallback(L.Callback):
    """A method, such as "redo", for `module.model`; probes are logged after each epoch.
    What the method has to remember is in checkpoints."""
    def __init__(self, method, example, **options):
        self.method, self.example, self.options = method, example, options
        self.handle, self.state, self.model = None, None, None

    @property
    def state_key(self): return f"method {self.method}"  # so that there may be several

    def on_train_start(self, trainer, module):
        # of another model that was trained before, nothing is left
        if self.model not in (None, module.model): self.state = None
        self.model = module.model
        self.example = module.transfer_batch_to_device(self.example, module.device, 0)
        self.units = units(self.model, self.example)
        self.handle = drop_in(self.method, self.model, trainer.optimizers[0],
                              example=self.example, **self.options)
        if self.state is not None: self.handle.load_state_dict(self.state)

    def on_train_epoch_end(self, trainer, module):
        module.log_dict(measure(self.model, self.example, units=self.units))

    def on_train_end(self, trainer, module):
        if self.handle is None: return
        self.state = self.handle.state_dict()
        self.handle.remove()
        self.handle = None

    def on_exception(self, trainer, module, exception): self.on_train_end(trainer, module)

    def state_dict(self):
        return {"method": self.handle.state_dict() if self.handle else self.state}

    def load_state_dict(self, state): self.state, self.model = state["method"], None


class Classifier(L.LightningModule):
    "Nothing of the method is in it."
    def __init__(self, model, learning_rate=1e-3):
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)


def example(epochs=3, seed=0, checkpoint=None):
    "ReDo, a small convolutional network and random-label MNIST digits; returns the trainer, its callback and what was logged last."
    from torch.utils.data import DataLoader, TensorDataset
    from l2init.streams import stream
    L.seed_everything(seed)
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 144, 50), nn.ReLU(), nn.Linear(50, 10))
    callback = MethodCallback("redo", x[:64], period=20, threshold=.1)
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])
    trainer.fit(Classifier(model), DataLoader(TensorDataset(x, y), batch_size=16), ckpt_path=checkpoint, weights_only=False)
    return trainer, callback, {name: value.item() for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__": print(example()[-1])
