"""L2-SP: fine-tune a transformer near its pretrained weights; its new head is pulled to where
it started, with another strength."""
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

from l2init.regularizers import L2Init


def regularizers(model, checkpoint, strength=1e-1, head_strength=1e-2):
    "One for what is pretrained, one for the head; `checkpoint` is a state dict or the path of one."
    def new(name, p): return name.startswith("classifier")
    def old(name, p): return not new(name, p)
    return (L2Init(model, strength, anchor=checkpoint, skip=new),
            L2Init(model, head_strength, skip=old))


def tiny(classes):
    return ViTForImageClassification(ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, num_labels=classes))


def fit(model, x, y, steps, penalties=()):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        i = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(pixel_values=x[i]).logits, y[i])
        loss = loss + sum(penalty() for penalty in penalties)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def example(folder, strength=1e-1, steps=60, seed=0):
    "Learn the ten digits, then only whether a digit is odd; returns the fine-tuned model and the regularizer of its body."
    from pathlib import Path
    from l2init.data import load_dataset
    torch.manual_seed(seed)
    data = load_dataset("mnist5k")
    x, y = data.scale(data.images[:500]), data.labels[:500]
    pretrained = tiny(10)
    fit(pretrained, x, y, steps)
    path = Path(folder, "pretrained.pt")
    torch.save(pretrained.state_dict(), path)
    model = tiny(2)
    body = {name: p for name, p in pretrained.state_dict().items() if not name.startswith("classifier")}
    model.load_state_dict(body, strict=False)
    body, head = regularizers(model, path, strength)
    fit(model, x, y % 2, steps, [body, head])
    return model, body


if __name__ == "__main__": print(f"distance from the pretrained weights: {example('.')[1]().item():.4f}")
