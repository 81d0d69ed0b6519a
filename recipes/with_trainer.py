"""L2 Init in Hugging Face's Trainer: a callback that pulls before each step of the optimizer."""
from pathlib import Path

import torch
from transformers import (Trainer, TrainerCallback, TrainingArguments, ViTConfig,
                          ViTForImageClassification, set_seed)

from l2init.regularizers import L2Init


class L2InitCallback(TrainerCallback):
    """The pull decoupled from the optimizer, so that gradient accumulation and scaling do not
    change it. Anchors are saved beside each checkpoint."""
    def __init__(self, model, strength=1e-2):
        # before training: it takes its anchors here
        self.reg = L2Init(model, strength=strength)

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.reg.to(model.device)
        self.handle = self.reg.attach(optimizer)

    def on_train_end(self, args, state, control, **kwargs): self.handle.remove()

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        torch.save(self.reg.state_dict(), folder / "l2_init.pt")


def example(folder, strength=1e-2, steps=60, seed=0):
    "A tiny vision transformer on random-label MNIST digits; returns the trainer and its callback."
    from torch.utils.data import StackDataset
    from l2init.streams import stream
    set_seed(seed)
    model = ViTForImageClassification(ViTConfig(image_size=28, patch_size=7, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=10))
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    arguments = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, save_steps=steps, use_cpu=True, report_to=[], disable_tqdm=True)
    callback = L2InitCallback(model, strength)
    trainer = Trainer(model, arguments, train_dataset=StackDataset(pixel_values=x, labels=y), callbacks=[callback])
    trainer.train()
    return trainer, callback


if __name__ == "__main__": print(f"penalty at the end: {example('trainer')[1].reg().item():.4f}")
