"""Methods joined by + in a name, from a study file to its table and figure."""
import matplotlib
import pytest
import torch
from processes import ROOT

from l2init.cohorts import Cohort
from l2init.internals.core import InputError
from l2init.methods import grid, methods
from l2init.results import hyper_columns, label
from l2init.streams import stream
from l2init.studies import plan
from l2init.training import train


def trained(method, engines=None, **hyper):
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=64, passes=2)
    c = Cohort(grid(method, [0, 1], [1e-2], **hyper), (1, 28, 28), 10, method, hidden=[8], dtype=torch.float64)
    table = train(c, s, False) if engines is None else train(c, s, False, engines=engines)
    return c, table


def test_values_reach_their_own_part():
    both, _ = trained("l2_init + l2", **{"l2_init.strength": [.1], "l2.strength": [0.]})
    one, _ = trained("l2_init", strength=[.1])
    other, _ = trained("l2_init + l2", **{"l2_init.strength": [0.], "l2.strength": [.1]})
    l2, _ = trained("l2", strength=[.1])
    plain, _ = trained("plain")
    assert torch.allclose(both.theta, one.theta, atol=1e-9) and torch.allclose(other.theta, l2.theta, atol=1e-9)
    assert not torch.allclose(one.theta, l2.theta, atol=1e-3) and not torch.allclose(one.theta, plain.theta, atol=1e-3)


@pytest.mark.parametrize("method,hyper", [
    ("l2_init + layer_norm", dict(strength=[.1, .01])), ("aid + input_normalization + l2_init", dict(strength=[.1])),
    ("redo + shrink_perturb", dict(period=[3], threshold=[.5], shrink=[.1], noise=[.01])),
    ("ewc + layer_norm", dict(importance=[1.]))])
def test_fast_is_readable(method, hyper):
    fast, slow = trained(method, **hyper), trained(method, engines=(), **hyper)
    assert torch.allclose(fast[0].theta, slow[0].theta, atol=1e-7)


def test_order_is_the_order_of_acting():
    hyper = dict(period=[3], threshold=[.9], shrink=[.5], noise=[.1])
    first, second = trained("redo + shrink_perturb", **hyper)[0], trained("shrink_perturb + redo", **hyper)[0]
    assert [type(p) for p in first.parts[1:]] == [type(p) for p in second.parts[1:]][::-1] # the optimizer's comes first
    assert not torch.allclose(first.theta, second.theta)


def test_the_study_file_is_planned(tmp_path):
    runs = plan(ROOT / "studies" / "howto" / "composed.toml", tmp_path)
    assert {r.params["method"]: r.learners for r in runs} == {
        "l2_init": 6, "layer_norm": 3, "l2_init + layer_norm": 6, "l2_init + l2": 6}
    hyper = next(r.params["hyper"] for r in runs if r.params["method"] == "l2_init + l2")
    assert hyper == {"l2_init.strength": [1e-2, 1e-3], "l2.strength": [1e-4]}
    text = (ROOT / "studies" / "howto" / "composed.toml").read_text()
    project = tmp_path / "project"
    (project / "nbs").mkdir(parents=True)
    (project / "nbs" / "experiments").symlink_to(ROOT / "nbs" / "experiments")
    (project / "spelled.toml").write_text(text.replace("l2_init + layer_norm", "l2_init+layer_norm"))
    assert {r.id for r in plan(project / "spelled.toml", tmp_path)} == {r.id for r in runs}
    (project / "wrong.toml").write_text(text.replace("l2_init + layer_norm", "l2_init + layernorm"))
    with pytest.raises(InputError, match="'layer_norm'"): plan(project / "wrong.toml", tmp_path)


def test_tables_and_figures_know_them():
    matplotlib.use("agg")
    from l2init.plots import palette, _ordered
    import pandas as pd
    frames = [trained(m, **h)[1].assign(method=m, run=m, stream="random_label_mnist", dataset="mnist5k", optimizer="adam")
              for m, h in (("l2_init + l2", {"l2_init.strength": [.1, .2], "l2.strength": [0.]}), ("l2_init", dict(strength=[.1])), ("plain", {}))]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["run", "stream", "dataset", "method", "optimizer", *frame.columns.difference(
        ["run", "stream", "dataset", "method", "optimizer"], sort=False)]]
    assert {"l2_init.strength", "l2.strength", "strength"} <= set(hyper_columns(frame))
    names = label(frame).unique()
    assert "L2 Init + L2 l2_init.λ=0.2 l2.λ=0" in names and "L2 Init λ=0.1" in names
    assert len(set(palette(frame).values())) == 4
    assert list(dict.fromkeys(_ordered(frame).method))[0] == "plain" and methods["l2_init + l2"].source
