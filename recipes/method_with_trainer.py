"""Any method in Hugging Face's Trainer: a callback that hooks it to the optimizer, and
measures the model whenever the Trainer logs."""
from pathlib import Path

import torch
from transformers import (Trainer, TrainerCallback, TrainingArguments, ViTConfig,
                          ViTForImageClassification, set_seed)

from l2init.drop_in import drop_in, measure
from l2init.units import units


def file(args, state):
    return Path(args.output_dir, f"checkpoint-{state.global_step}", "method.pt")


class MethodCallback(TrainerCallback):
    """A method, such as "redo". What it has to remember is saved in each checkpoint, and
    read when training goes on from one."""
    def __init__(self, method, example, **options):
        self.method, self.example, self.options = method, example, options
        self.probes = []

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.example = {name: t.to(model.device) for name, t in self.example.items()}
        self.units = units(model, self.example)
        self.handle = drop_in(self.method, model, optimizer, example=self.example,
                              **self.options)
        if state.global_step: self.handle.load_state_dict(torch.load(file(args, state)))

    def on_log(self, args, state, control, model, **kwargs):
        probes = measure(model, self.example, units=self.units)
        self.probes.append(dict(step=state.global_step) | probes)

    def on_train_end(self, args, state, control, **kwargs): self.handle.remove()

    def on_save(self, args, state, control, **kwargs):
        torch.save(self.handle.state_dict(), file(args, state))


def example(folder, steps=40, seed=0, resume=False):
    "ReDo, a tiny vision transformer and random-label MNIST digits; returns the trainer and its callback."
    from torch.utils.data import StackDataset
    from l2init.streams import stream
    set_seed(seed)
    model = ViTForImageClassification(ViTConfig(image_size=28, patch_size=7, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=10))
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    arguments = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, save_steps=20, logging_steps=20, use_cpu=True, report_to=[], disable_tqdm=True)
    callback = MethodCallback("redo", dict(pixel_values=x[:32]), period=10, threshold=.5)
    trainer = Trainer(model, arguments, train_dataset=StackDataset(pixel_values=x, labels=y), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


if __name__ == "__main__": print(example("trainer")[1].probes[-1])
