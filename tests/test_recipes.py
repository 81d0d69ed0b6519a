"""The recipes do, inside the real libraries, what the regularizer does by itself. They need the extra `recipes`: pip install -e ".[recipes]"."""
import sys

import pytest
import torch
from processes import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(monkeypatch):
    "The module of a recipe; the test is skipped where its library is not installed."
    monkeypatch.setattr(sys, "path", [str(ROOT / "recipes"), *sys.path])
    def load(name, library):
        pytest.importorskip(library, reason="needs the extra `recipes`")
        return __import__(name)
    return load


def distance(reg): return sum(((p - a) ** 2).sum().item() for p, a in reg.pairs())


def test_lightning_module(recipe):
    m = recipe("with_lightning", "lightning")
    pulled, free = m.example(strength=.1), m.example(strength=0.)
    assert distance(pulled.reg) < .5 * distance(free.reg)
    assert any(n.startswith("reg.anchors.") for n in pulled.state_dict())


def test_lightning_callback_resumes_with_its_anchors(recipe, tmp_path):
    m = recipe("with_lightning", "lightning")
    from torch.utils.data import DataLoader, TensorDataset
    batches = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), batch_size=16)
    def fit(epochs, strength, **kwargs):
        torch.manual_seed(0)
        module = m.Classifier(torch.nn.Linear(8, 3), strength=0., learning_rate=.05)
        callback = m.L2InitCallback(module.model, strength)
        trainer = m.L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])
        if kwargs: torch.nn.init.zeros_(module.model.weight) # another start, as after a restart with other random numbers
        anchors = [a.clone() for a in callback.reg.buffers()]
        trainer.fit(module, batches, **kwargs)
        return trainer, callback, anchors
    (_, free, _), (trainer, pulled, anchors) = fit(3, 0.), fit(3, 5.)
    assert distance(pulled.reg) < .5 * distance(free.reg)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks # the pull has ended with the training
    trainer.save_checkpoint(tmp_path / "l.ckpt")
    _, resumed, _ = fit(4, 5., ckpt_path=tmp_path / "l.ckpt", weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(anchors, resumed.reg.buffers()))


def test_lightning_callback_decays_as_adamw(recipe):
    m = recipe("with_lightning", "lightning")
    from l2init.regularizers import L2
    from torch.utils.data import DataLoader, TensorDataset
    def weights(attached, optimizer, **decay):
        torch.manual_seed(0)
        batches = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), batch_size=16)
        module = m.Classifier(torch.nn.Linear(8, 3), strength=0.)
        module.configure_optimizers = lambda: optimizer(module.model.parameters(), lr=.05, **decay)
        callback = m.L2InitCallback(module.model)
        callback.reg = L2(module.model, strength=.5)
        options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        m.L.Trainer(max_epochs=2, callbacks=[callback] if attached else [], **options).fit(module, batches)
        return module.model.weight.detach()
    for own, plain in ((torch.optim.AdamW, torch.optim.Adam), (torch.optim.SGD, torch.optim.SGD)): # Lightning gives each step a closure
        assert torch.allclose(weights(False, own, weight_decay=.5), weights(True, plain), rtol=0, atol=1e-6)


def test_accelerate(recipe):
    recipe("with_trainer", "transformers")
    from accelerate import Accelerator
    from l2init.regularizers import L2
    model = torch.nn.Linear(4, 3, bias=False)
    torch.nn.init.ones_(model.weight)
    reg = L2(model, strength=5.)
    model, optimizer = Accelerator(cpu=True).prepare(model, torch.optim.SGD(model.parameters(), lr=.1))
    handle = reg.attach(optimizer) # Accelerate's wrapper
    model.weight.grad = torch.zeros_like(model.weight)
    for right in (.5, .25):
        optimizer.step()
        assert torch.allclose(model.weight, torch.full((3, 4), right))
    handle.remove()
    optimizer.step()
    assert torch.allclose(model.weight, torch.full((3, 4), .25))


def test_trainer(recipe, tmp_path):
    m = recipe("with_trainer", "transformers")
    (_, free), (trainer, pulled) = m.example(tmp_path / "free", strength=0.), m.example(tmp_path / "pulled", strength=50.)
    assert distance(pulled.reg) < .5 * distance(free.reg)
    saved = torch.load(tmp_path / "pulled" / "checkpoint-60" / "l2_init.pt")
    assert saved.keys() == pulled.reg.state_dict().keys() and all(torch.equal(saved[n], a) for n, a in pulled.reg.state_dict().items())
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks # the pull has ended with the training


def test_avalanche(recipe):
    m = recipe("with_avalanche", "avalanche")
    (_, free), (strategy, pulled) = m.example(strength=0.), m.example(strength=1.)
    assert distance(pulled.reg) < .5 * distance(free.reg)
    assert any(isinstance(p, m.L2InitPlugin) for p in strategy.plugins)


def test_a_method_in_lightning(recipe, tmp_path):
    m = recipe("method_with_lightning", "lightning")
    trainer, callback, logged = m.example()
    assert callback.state["steps"] == 30 and {"dead_share", "dormant_share", "srank"} <= logged.keys()
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks # it has ended with the training
    trainer.save_checkpoint(tmp_path / "l.ckpt")
    whole, longer, _ = m.example(epochs=5)
    halves, resumed, _ = m.example(epochs=5, checkpoint=tmp_path / "l.ckpt")
    assert longer.state["steps"] == resumed.state["steps"] == 50
    assert all(torch.equal(p, q) for p, q in zip(whole.lightning_module.parameters(), halves.lightning_module.parameters()))


def test_methods_in_lightning_side_by_side_and_on_another_model(recipe):
    m = recipe("method_with_lightning", "lightning")
    from torch.utils.data import DataLoader, TensorDataset
    batches = DataLoader(TensorDataset(torch.randn(32, 8), torch.randint(3, (32,))), batch_size=16)
    make = lambda: m.Classifier(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)))
    options = dict(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    callbacks = [m.MethodCallback("redo", torch.randn(16, 8), period=2, threshold=.1), m.MethodCallback("l2_init", torch.randn(16, 8), strength=.1)]
    first, second = make(), make()
    start = second.model[0].weight.detach().clone()
    for module in (first, second): m.L.Trainer(callbacks=callbacks, **options).fit(module, batches)
    assert [c.state["steps"] for c in callbacks] == [4, 4] and callbacks[1].state["theta0"][0, :64].equal(start.T.flatten())
    class Fails(m.Classifier):
        def training_step(self, batch, index): raise KeyError("a fault")
    failing = Fails(make().model)
    with pytest.raises(KeyError): m.L.Trainer(callbacks=callbacks, **options).fit(failing, batches)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in failing.modules())


def test_a_method_in_trainer(recipe, tmp_path):
    m = recipe("method_with_trainer", "transformers")
    whole, callback = m.example(tmp_path / "whole")
    assert callback.handle.steps == 40 and [p["step"] for p in callback.probes][:2] == [20, 40]
    m.example(tmp_path / "halves", steps=20)
    halves, resumed = m.example(tmp_path / "halves", resume=True)
    assert resumed.handle.steps == 40 and resumed.probes[-1] == callback.probes[-1]
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), halves.model.parameters()))


def test_methods_in_trainer_from_another_folder(recipe, tmp_path):
    m = recipe("method_with_trainer", "transformers")
    halves, _ = m.example(tmp_path / "a", steps=20)
    old = tmp_path / "a" / "checkpoint-20"
    callback = m.MethodCallback("redo", dict(pixel_values=torch.randn(8, 1, 28, 28), return_dict=True), resume=old, period=10, threshold=.1)
    arguments = m.TrainingArguments(output_dir=tmp_path / "b", max_steps=30, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = m.Trainer(halves.model, arguments, train_dataset=halves.train_dataset, eval_dataset=halves.train_dataset, callbacks=[callback])
    trainer.evaluate() # before training, there is nothing to measure with
    trainer.train(resume_from_checkpoint=str(old))
    assert callback.handle.steps == 30 and callback.probes


def test_a_method_in_avalanche(recipe):
    m = recipe("method_with_avalanche", "avalanche")
    (_, plain), (strategy, reset) = m.example("l2", strength=0.), m.example("head_reset")
    assert plain.handle.tasks == reset.handle.tasks == 2 and len(reset.probes) == 3
    assert plain.probes[0] == reset.probes[0] and plain.probes[1] != reset.probes[1] # the head is drawn anew after the first task
    _, redo = m.example("redo", period=20, threshold=.1)
    assert redo.handle.steps == 75 and redo.probes[-1]["dormant_share"] < plain.probes[-1]["dormant_share"]
    strategy.model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)) # another one
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=.1)
    reset.example = torch.randn(4, 64)
    reset.before_training_exp(strategy)
    assert reset.handle.model is strategy.model and reset.handle.tasks == 0


def test_fine_tuning_stays_near_the_pretrained_weights(recipe, tmp_path):
    m = recipe("toward_pretrained", "transformers")
    (_, free), (_, near) = m.example(tmp_path, strength=0.), m.example(tmp_path, strength=1.)
    assert distance(near) < .5 * distance(free)
