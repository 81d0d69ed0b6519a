"""ReDo and probes in Lightning: a callback that renews dormant units of any LightningModule and logs what state its network is in."""
import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from l2init.drop_in import ReDo, measure


class ReDoCallback(L.Callback):
    "Renews dormant units of `module.model`; logs probes after each epoch. Its state is in checkpoints."
    def __init__(self, example, period=1000, threshold=.1): self.example, self.options, self.state = example, dict(period=period, threshold=threshold), None

    def on_train_start(self, trainer, module):
        x = self.example.to(module.device)
        self.redo = ReDo(module.model, trainer.optimizers[0], example=x, **self.options)
        if self.state is not None: self.redo.load_state_dict(self.state)

    def on_train_epoch_end(self, trainer, module):
        probes = measure(module.model, self.example.to(module.device), units=self.redo.stack.network.found)
        module.log_dict({name: float(value) for name, value in probes.items()})

    def on_train_end(self, trainer, module): self.state = self.redo.state_dict(); self.redo.remove()

    def state_dict(self): return {"redo": self.redo.state_dict()}
    def load_state_dict(self, state): self.state = state["redo"]


class Classifier(L.LightningModule):
    "Nothing of ReDo is in it."
    def __init__(self, model, learning_rate=1e-2):
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch, index): return F.cross_entropy(self.model(batch[0]), batch[1])
    def configure_optimizers(self): return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)


def example(period=20, epochs=3, seed=0):
    "A small convolutional network on random-label MNIST digits; returns the callback and what was logged last."
    from torch.utils.data import DataLoader, TensorDataset
    from l2init.streams import stream
    L.seed_everything(seed)
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 144, 50), nn.ReLU(), nn.Linear(50, 10))
    callback = ReDoCallback(x[:64], period=period)
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])
    trainer.fit(Classifier(model), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
    return callback, {name: value.item() for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__": print(example()[1])
