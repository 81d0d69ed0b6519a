"""L2 Init in Lightning, in two ways: in your own LightningModule, and as a callback for one that
you would rather not change."""
import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from l2init.regularizers import L2Init


class Classifier(L.LightningModule):
    """The penalty in the loss. The regularizer is a submodule, so its anchors move to the device
    and are in checkpoints."""
    def __init__(self, model, strength=1e-2, learning_rate=1e-3):
        super().__init__()
        self.model, self.learning_rate = model, learning_rate
        # right after the model: it takes its anchors here
        self.reg = L2Init(model, strength=strength)

    def training_step(self, batch, index):
        x, y = batch
        loss, penalty = F.cross_entropy(self.model(x), y), self.reg()
        self.log_dict({"loss": loss, "penalty": penalty})
        return loss + penalty

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)


class L2InitCallback(L.Callback):
    "The pull decoupled from the optimizer, as AdamW decouples weight decay. Anchors are in checkpoints."
    def __init__(self, model, strength=1e-2): self.reg = L2Init(model, strength=strength)

    def on_train_start(self, trainer, module):
        self.reg.to(module.device)
        self.handles = [self.reg.attach(optimizer) for optimizer in trainer.optimizers]

    def on_train_end(self, trainer, module):
        for handle in self.handles: handle.remove()

    def state_dict(self): return self.reg.state_dict()
    def load_state_dict(self, state): self.reg.load_state_dict(state)


def example(strength=1e-2, tasks=3, seed=0):
    "One learner on random-label MNIST digits, task after task; returns the LightningModule."
    from torch.utils.data import DataLoader, TensorDataset
    from l2init.streams import stream
    L.seed_everything(seed)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)), strength)
    s = stream("random_label_mnist", dataset="mnist5k", tasks=tasks, examples=160, passes=20)
    for t in range(tasks):
        x, y = (v[0] for v in s.task(t, [seed]).train)  # of the one seed
        trainer = L.Trainer(max_epochs=s.passes, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
    return module


if __name__ == "__main__": print(f"penalty at the end: {example().reg().item():.4f}")
