"""Any method in Hugging Face's Trainer: a callback that hooks it to the optimizer, and
measures the model whenever the Trainer logs."""
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from transformers import (ResNetConfig, ResNetForImageClassification, Trainer,
                          TrainerCallback, TrainingArguments, set_seed)

from l2init.drop_in import drop_in, measure
from l2init.units import units


class MethodCallback(TrainerCallback):
    """A method, such as "redo". What it has to remember is saved in each checkpoint, and
    read from there when training goes on; `resume`: the checkpoint, if it is in another
    folder than the Trainer's own."""
    def __init__(self, method, example, resume=None, **options):
        self.method, self.example, self.options = method, example, options
        self.resume, self.handle, self.probes = resume, None, []

    def file(self, args, state, folder=None):
        folder = folder or Path(args.output_dir, f"checkpoint-{state.global_step}")
        return Path(folder, f"method {self.method}.pt")

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.example = send_to_device(self.example, model.device)
        self.units = units(model, self.example)
        self.handle = drop_in(self.method, model, optimizer, example=self.example,
                              **self.options)
        if state.global_step:
            saved = torch.load(self.file(args, state, self.resume), model.device)
            self.handle.load_state_dict(saved)

    def on_log(self, args, state, control, model, **kwargs):
        if self.handle is None: return  # an evaluation before training
        probes = measure(model, self.example, units=self.units)
        self.probes.append(dict(step=state.global_step) | probes)

    def on_train_end(self, args, state, control, **kwargs): self.handle.remove()

    def on_save(self, args, state, control, **kwargs):
        torch.save(self.handle.state_dict(), self.file(args, state))


def example(folder, steps=40, seed=0, resume=False):
    "ReDo, a tiny residual network and random-label MNIST digits; returns the trainer and its callback."
    from torch.utils.data import StackDataset
    from l2init.streams import stream
    set_seed(seed)
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10))
    x, y = (v[0] for v in stream("random_label_mnist", dataset="mnist5k", examples=160).task(0, [seed]).train)  # of the one seed
    arguments = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, lr_scheduler_type="constant", save_steps=20, logging_steps=20, use_cpu=True, report_to=[], disable_tqdm=True)
    callback = MethodCallback("redo", dict(pixel_values=x[:32]), period=10, threshold=.5)
    trainer = Trainer(model, arguments, train_dataset=StackDataset(pixel_values=x, labels=y), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


if __name__ == "__main__": print(example("trainer")[1].probes[-1])
