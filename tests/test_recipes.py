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


def test_redo_in_lightning(recipe):
    m = recipe("redo_with_lightning", "lightning")
    callback, logged = m.example()
    assert callback.redo.steps == 30 and {"dead_share", "dormant_share", "srank"} <= logged.keys()
    assert callback.state_dict()["redo"]["steps"] == 30
    assert not callback.redo.optimizer._optimizer_step_pre_hooks


def test_redo_in_trainer(recipe, tmp_path):
    m = recipe("redo_with_trainer", "transformers")
    callback = m.example(tmp_path)
    assert callback.redo.steps == 40 and len(callback.redo.stack.network.found) == 2 # the perceptrons of two blocks
    assert [p["step"] for p in callback.probes][:2] == [20, 40]
    assert torch.load(tmp_path / "checkpoint-40" / "redo.pt")["steps"] == 40


def test_fine_tuning_stays_near_the_pretrained_weights(recipe, tmp_path):
    m = recipe("toward_pretrained", "transformers")
    (_, free), (_, near) = m.example(tmp_path, strength=0.), m.example(tmp_path, strength=1.)
    assert distance(near) < .5 * distance(free)
