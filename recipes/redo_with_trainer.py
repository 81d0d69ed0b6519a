"""ReDo and probes in Hugging Face's Trainer: a callback that renews dormant units of a transformer's perceptrons and logs its probes."""
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from l2init.drop_in import ReDo, measure


class ReDoCallback(TrainerCallback):
    "Renews dormant units; measures the model whenever the Trainer logs. Its state is saved beside each checkpoint."
    def __init__(self, example, period=1000, threshold=.1): self.example, self.options, self.probes = example, dict(period=period, threshold=threshold), []

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.redo = ReDo(model, optimizer, example=self.example, **self.options)

    def on_log(self, args, state, control, model, **kwargs):
        self.probes.append(measure(model, self.example, units=self.redo.stack.network.found) | dict(step=state.global_step))

    def on_train_end(self, args, state, control, **kwargs): self.redo.remove()

    def on_save(self, args, state, control, **kwargs):
        torch.save(self.redo.state_dict(), Path(args.output_dir, f"checkpoint-{state.global_step}", "redo.pt"))


def example(folder, period=10, threshold=.5, steps=40, seed=0):
    "A tiny vision transformer on random-label MNIST digits; returns the callback."
    from torch.utils.data import StackDataset
    from l2init.streams import stream
    set_seed(seed)
    model = ViTForImageClassification(ViTConfig(image_size=28, patch_size=7, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=10))
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    arguments = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, save_steps=steps, logging_steps=20, use_cpu=True, report_to=[], disable_tqdm=True)
    callback = ReDoCallback(dict(pixel_values=x[:32]), period, threshold)
    Trainer(model, arguments, train_dataset=StackDataset(pixel_values=x, labels=y), callbacks=[callback]).train()
    return callback


if __name__ == "__main__": print(example("trainer").probes[-1])
