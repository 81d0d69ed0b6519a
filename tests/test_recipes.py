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
    _, longer, _ = m.example(epochs=5)
    _, resumed, _ = m.example(epochs=5, checkpoint=tmp_path / "l.ckpt")
    assert longer.state["steps"] == resumed.state["steps"] == 50


def test_a_method_in_trainer(recipe, tmp_path):
    m = recipe("method_with_trainer", "transformers")
    _, callback = m.example(tmp_path, steps=20)
    assert callback.handle.steps == 20 and len(callback.units) == 2 # the perceptrons of two blocks
    saved = torch.load(tmp_path / "checkpoint-20" / "method.pt")
    _, resumed = m.example(tmp_path, resume=True)
    assert saved["steps"] == 20 and resumed.handle.steps == 40
    assert torch.equal(resumed.handle.state_dict()["theta0"], saved["theta0"]) # not the weights that it went on with
    assert [p["step"] for p in resumed.probes][:1] == [40]


def test_a_method_in_avalanche(recipe):
    m = recipe("method_with_avalanche", "avalanche")
    (_, plain), (_, reset) = m.example("l2", strength=0.), m.example("head_reset")
    assert plain.handle.tasks == reset.handle.tasks == 2 and len(reset.probes) == 3
    assert plain.probes[0] == reset.probes[0] and plain.probes[1] != reset.probes[1] # the head is drawn anew after the first task
    _, redo = m.example("redo", period=20, threshold=.1)
    assert redo.handle.steps == 75 and redo.probes[-1]["dormant_share"] < plain.probes[-1]["dormant_share"]


def test_fine_tuning_stays_near_the_pretrained_weights(recipe, tmp_path):
    m = recipe("toward_pretrained", "transformers")
    (_, free), (_, near) = m.example(tmp_path, strength=0.), m.example(tmp_path, strength=1.)
    assert distance(near) < .5 * distance(free)
