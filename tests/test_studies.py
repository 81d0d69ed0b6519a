"""What the study files say: the paper's protocol in studies/paper, and everywhere options that reach the runs. Plans alone, without data."""
import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from processes import ROOT
from test_bad_input import document
from test_notebooks import cells

from l2init.internals.runs import scales
from l2init.methods import methods
from l2init.training import Probes
from l2init.networks import networks
from l2init.optimizers import optimizers
from l2init.streams import streams
from l2init.studies import plan, read_study, stream_of

FILES = sorted((ROOT / "studies").rglob("*.toml"))
PAPER = {p.stem: p for p in FILES if p.parent.name == "paper"}


def planned(file, tmp_path): return plan(file, tmp_path / "runs", data=False) # where no run is done


# The streams of table 1: data set, tasks, examples of the largest task, batch size, steps of such a task.

TABLE_1 = dict(
    permuted_mnist=("mnist", 500, 10_000, 16, 625),
    random_label_mnist=("mnist", 50, 1200, 16, 30_000),
    random_label_cifar10=("cifar10", 50, 1200, 16, 30_000),
    five_plus_one_cifar100=("cifar100", 30, 2500, 32, 780),
    continual_imagenet=("imagenet32", 500, 1200, 100, 120),
)
CNNS = ["random_label_cifar10", "five_plus_one_cifar100", "continual_imagenet"]
STREAMS = dict({n: [n] for n in TABLE_1}, # of each file in studies/paper
    ablations=["permuted_mnist", "random_label_mnist", "five_plus_one_cifar100"], batch_size=["permuted_mnist"] * 3, forgetting=["permuted_mnist"],
    fresh_network=[*TABLE_1], sensitivity=[*TABLE_1], initializations_cnn=CNNS, networks_cnn=CNNS, code_streams=["permuted_mnist"] * 4 + ["random_label_mnist"] * 3,
    **{f"{n}_mlp": ["permuted_mnist", "random_label_mnist"] for n in ("initializations", "networks")},
    code_methods_cnn=["random_label_cifar10"], code_initializations=["random_label_mnist"],
    **{f"code_{n}_{s}": [stream] for n in ("all", "methods", "none") for s, stream in (("permuted", "permuted_mnist"), ("random", "random_label_mnist"))})
UNLIKE = dict( # what a file changes: the streams' options that are not the paper's, one set for each entry of `streams`
    forgetting=[dict(tasks=20)],
    batch_size=[dict(batch_size=8), {}, dict(batch_size=32)],
    code_all_permuted=[dict(last_batch="drop", first_identity=True, fresh_subset=True)],
    code_all_random=[dict(last_batch="drop", labels="permuted")],
    code_streams=[{}, dict(last_batch="drop"), dict(first_identity=True), dict(fresh_subset=True), {}, dict(last_batch="drop"), dict(labels="permuted")],
)
STEPS = dict(batch_size=[1250, 625, 312], code_all_permuted=[624], code_all_random=[29_600], code_streams=[625, 624, 625, 625, 30_000, 29_600, 30_000]) # where they are others for that


def test_every_file_is_compared(): assert set(PAPER) == set(STREAMS) and set(UNLIKE) | set(STEPS) <= set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_the_streams_are_those_of_the_paper(name, tmp_path):
    expected, seen = [], {}
    for i, stream in enumerate(STREAMS[name]):
        dataset, tasks, examples, batch_size, steps = TABLE_1[stream]
        unlike = UNLIKE[name][i] if name in UNLIKE else {}
        expected.append(str((stream, dataset, unlike.get("tasks", tasks), examples, unlike.get("batch_size", batch_size), STEPS[name][i] if name in STEPS else steps, unlike)))
    for r in planned(PAPER[name], tmp_path):
        s = stream_of(r)
        seen[str((r.notebook.stem, s.dataset, s.tasks, s.examples, s.batch_size, s.steps, {n: value for n, (value, _) in s.changed().items()}))] = r.steps == s.tasks * s.steps
    assert sorted(seen) == sorted(expected) and all(seen.values())


@pytest.mark.parametrize("name", PAPER)
def test_only_seeds_that_select_or_evaluate(name):
    study = read_study(PAPER[name])
    assert not study.select_seeds or study.select_seeds == [100, 101, 102]
    assert study.seeds == list(range(5 if name == "forgetting" else 10)) # table 2 has five


FULL = dict( # studies/full: what is not the paper's, beside the data
    random_label_mnist={}, random_label_mnist_resets={}, random_label_mnist_others={}, random_label_mnist_sgd={}, random_label_mnist_l2={}, random_label_mnist_unit=dict(scaling="unit"), random_label_mnist_adam_correction={}, random_label_mnist_replacement_rate={}, random_label_mnist_readings_redo={}, random_label_mnist_readings_continual_backprop={}, random_label_mnist_code=dict(last_batch="drop", labels="permuted"), scaling={},
    selection_random_label_mnist=dict(tasks=10), permuted_mnist=dict(examples=4000), forgetting=dict(tasks=20, examples=4000))
BESIDE = dict(scaling=[dict(scaling="unit")], # what the other streams of a study change
              random_label_mnist_l2=[dict(last_batch="drop", labels="permuted"), dict(scaling="unit")])


@pytest.mark.parametrize("file", sorted((ROOT / "studies" / "full").glob("*.toml")), ids=lambda p: p.stem)
def test_full_scale_is_the_paper_s_but_for_the_data(file, tmp_path):
    unlike = dict(FULL[file.stem], dataset="mnist5k")
    for r in planned(file, tmp_path):
        changed = {n: value for n, (value, _) in stream_of(r).changed().items()}
        assert changed in [unlike | beside for beside in ({}, *BESIDE.get(file.stem, []))]
    assert read_study(file).seeds == dict(scaling=[*range(5)], forgetting=[*range(5)], random_label_mnist_readings_redo=[0, 1, 2], random_label_mnist_readings_continual_backprop=[0, 1, 2], random_label_mnist_l2=[0, 1, 2], random_label_mnist_unit=[0, 1, 2], selection_random_label_mnist=[100, 101, 102]).get(file.stem, [*range(10)])


@pytest.mark.parametrize("stream, files", [("random_label_mnist", ["", "_resets", "_others", "_sgd"]), ("permuted_mnist", [""])])
def test_full_scale_has_what_the_paper_selected(stream, files, tmp_path):
    "Each method once with each optimizer; L2 and L2 Init in both conventions of λ; ReDo's period is so many tasks as there."
    runs = {(r.params["optimizer"], r.params["method"]): r.params for file in files for r in planned(ROOT / "studies" / "full" / f"{stream}{file}.toml", tmp_path)}
    assert len(runs) == 2 * len(GRIDS)
    for optimizer, selected in SELECTED.items():
        for method, on in selected.items():
            (rate, *hyper), params = on[stream], runs[optimizer, method]
            if method in ("l2", "l2_init"): hyper = [[hyper[0], 2 * hyper[0]]]
            if method == "redo": hyper[0] = hyper[0] // TABLE_1[stream][-1] * (30_000 if stream == "random_label_mnist" else 250)
            assert params["learning_rate"] == [rate] and [params["hyper"][n] for n in [*GRIDS[method]][:len(hyper)]] == [h if isinstance(h, list) else [h] for h in hyper], (optimizer, method)


# The grids of the five comparisons, and what the paper selected in them.

STRENGTHS, PERIODS = {1e-2, 1e-3, 1e-4, 1e-5}, (1, 2, 5) # tasks
GRIDS = dict(
    plain={}, layer_norm={}, crelu={}, l2=dict(strength=STRENGTHS), l2_init=dict(strength=STRENGTHS), shrink_perturb=dict(shrink=STRENGTHS, noise=STRENGTHS),
    continual_backprop=dict(replacement_rate={1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6}), redo=dict(period=PERIODS, threshold={0, 1e-2, 1e-1}),
)
NUMBER = dict(plain=1, layer_norm=1, crelu=1, l2=4, l2_init=4, shrink_perturb=16, continual_backprop=6, redo=9) # of configurations at each learning rate


def rates(stream, optimizer):
    if optimizer == "adam": return {1e-3, 1e-4}
    return {1e-2, 1e-3} | ({1e-1} if stream in ("five_plus_one_cifar100", "continual_imagenet") else set())


@pytest.mark.parametrize("stream", TABLE_1)
def test_the_grids_are_those_of_the_paper(stream, tmp_path):
    runs = planned(PAPER[stream], tmp_path)
    assert sorted((r.params["method"], r.params["optimizer"], r.phase) for r in runs) == sorted((m, o, "select") for m in GRIDS for o in ("adam", "sgd"))
    for r in runs:
        method, optimizer, steps = r.params["method"], r.params["optimizer"], TABLE_1[stream][-1]
        grid = GRIDS[method] if method != "redo" else dict(GRIDS["redo"], period={steps * t for t in PERIODS})
        assert set(r.params["learning_rate"]) == rates(stream, optimizer)
        assert {n: set(v) for n, v in r.params["hyper"].items() if n in grid} == grid
        assert {n: v for n, v in r.params["hyper"].items() if n not in grid} == {n: v for n, v in methods[method].defaults.items() if n not in grid}
        assert r.learners == NUMBER[method] * len(rates(stream, optimizer)) * 3
        assert r.params["network"] == dict(name=streams[stream].network, **networks[streams[stream].network]().model_dump())


# Tables 3 (Adam) and 4 (SGD): learning rate and hyper-parameters that the paper selected on each stream, in the order of `TABLE_1`; None: not compared.

def column(*values): return dict(zip(TABLE_1, values))


def same(*values): return column(*[values] * 5)


SELECTED = dict(
    adam=dict(
        plain=column((1e-4,), (1e-4,), (1e-3,), (1e-4,), (1e-4,)),
        layer_norm=column((1e-3,), (1e-4,), (1e-3,), (1e-4,), (1e-3,)),
        l2_init=column((1e-3, 1e-2), (1e-4, 1e-2), (1e-3, 1e-2), (1e-3, 1e-2), (1e-3, 1e-3)),
        l2=column((1e-3, 1e-2), (1e-4, 1e-2), (1e-4, 1e-2), (1e-3, 1e-3), (1e-3, 1e-3)),
        shrink_perturb=column((1e-3, 1e-3, 1e-2), (1e-4, 1e-4, 1e-2), *[(1e-3, 1e-4, 1e-2)] * 3),
        continual_backprop=column((1e-3, 1e-3), (1e-3, 1e-3), *[(1e-3, 1e-4)] * 3),
        crelu=same(1e-3),
        redo=column((1e-3, 625, 0), (1e-3, 30_000, .1), (1e-4, 30_000, .1), (1e-3, 1560, 0), (1e-3, 120, 0)),
    ),
    sgd=dict(
        plain=column((1e-2,), (1e-3,), (1e-2,), (1e-2,), (1e-1,)),
        layer_norm=column((1e-2,), (1e-3,), (1e-2,), (1e-1,), (1e-1,)),
        l2_init=column((1e-2, 1e-2), (1e-2, 1e-2), (1e-2, 1e-2), (1e-2, 1e-5), (1e-1, 1e-3)),
        l2=column((1e-2, 1e-2), (1e-2, 1e-2), (1e-2, 1e-2), (1e-2, 1e-4), (1e-1, 1e-3)),
        shrink_perturb=column((1e-2, 1e-4, 1e-2), (1e-2, 1e-4, 1e-2), None, (1e-2, 1e-5, 1e-2), (1e-1, 1e-4, 1e-4)),
        continual_backprop=column((1e-2, 1e-3), (1e-2, 1e-3), None, (1e-2, 1e-3), None),
        crelu=column((1e-2,), (1e-2,), (1e-3,), (1e-2,), (1e-2,)),
        redo=column((1e-2, 625, 0), (1e-2, 30_000, .1), None, (1e-2, 1560, 0), (1e-1, 600, .1)),
    ))


@pytest.mark.parametrize("stream", TABLE_1)
def test_what_the_paper_selected_is_in_the_grids(stream, tmp_path):
    runs = {(r.params["optimizer"], r.params["method"]): r.params for r in planned(PAPER[stream], tmp_path)}
    for optimizer, selected in SELECTED.items():
        for method, on in selected.items():
            if on[stream] is None: continue
            rate, *hyper = on[stream]
            params = runs[optimizer, method]
            names = [*GRIDS[method]][:len(hyper)]
            assert rate in params["learning_rate"] and all(value in params["hyper"][name] for name, value in zip(names, hyper)), (optimizer, method)


# What a file says of itself.

SCALE = re.compile(r"\d (of|instead of|out of) [\d,]|\d (of the paper's |more |other )?(\w+ )?(tasks?|steps?|seeds?|examples?|digits|images|passes|runs|learners)\b")


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT / "studies")))
def test_about_does_not_repeat_the_scale(file):
    "Which `Run.scale` says from the plan, so that it is true."
    assert not (found := SCALE.search(read_study(file).about)), found


@pytest.mark.parametrize("phrase", ["20 of 500 tasks", "3,200 of 10,000 digits", "40 of 120 steps", "of 50 instead of 100", "3 seeds", "15 tasks of", "12 instead of 10 passes", "1,200 permuted digits"])
def test_a_scale_is_noticed(phrase): assert SCALE.search(phrase)


# Options: each that there is, with another value than its default and what has to be beside it.

SHARED = dict(dataset=dict(dataset="photo_patches"), tasks=dict(tasks=3), examples=dict(examples=64), batch_size=dict(batch_size=8), passes=dict(passes=2), last_batch=dict(last_batch="keep"), scaling=dict(scaling="unit"), transition=dict(transition=.5), recur=dict(recur=2))
OF_STREAMS = dict(
    permuted_mnist=dict(SHARED, first_identity=dict(first_identity=True), fresh_subset=dict(fresh_subset=True)),
    random_label_mnist=dict(SHARED, labels=dict(labels="permuted")),
    random_label_cifar10=dict(SHARED, labels=dict(labels="permuted")),
    five_plus_one_cifar100=dict(SHARED, examples=dict(examples=500, each=100), each=dict(each=100, examples=500)),
    continual_imagenet=dict(SHARED, examples=dict(examples=200, each=100), each=dict(each=100, examples=200)),
    online_permuted_mnist=dict(SHARED, first_identity=dict(first_identity=True), fresh_subset=dict(fresh_subset=True)),
    input_permuted_mnist=dict(SHARED, first_identity=dict(first_identity=True), fresh_subset=dict(fresh_subset=False)),
    label_permuted_cifar10=SHARED,
    label_permuted_emnist=dict(SHARED, dataset=dict(dataset="mnist5k"), scaling=dict(scaling="unit")),
    warm_start=dict(SHARED, tasks=dict(tasks=3), examples=dict(examples=512), share=dict(share=.1), noise=dict(noise=.5), equal=dict(equal="steps")),
    class_incremental_cifar100=dict(SHARED, examples=dict(examples=10_000, each=100), each=dict(each=100, examples=10_000), more=dict(more=4, examples=36_000), tasks=dict(tasks=3, examples=6750), equal=dict(equal="steps"), recur=dict(recur=2, examples=4500)),
)
OF_NETWORKS = dict(layer_norm=True, activation="crelu", leak=.1, positive=.8, normalize_input=True, removed=.25, init="xavier_normal", xavier_gain="relu", hidden=[7, 8], channels=[5, 6], kernels=[3, 3])
OF_OPTIMIZERS = dict(beta1=.8, beta2=.99, eps=1e-6, correction="lost")
OF_PROBES = dict(examples_of="next", srank="below", dormant=.1, fresh=2, forgetting=True, plasticity=3, readiness=4, grama=True, converged=.9, kernel=5)


@pytest.fixture
def planned_with(tmp_path):
    "The parameters of the one run of a study that names a stream and what is given."
    (tmp_path / "nbs").symlink_to(ROOT / "nbs")
    def run(stream, of_stream={}, of_network=None, of_optimizer={}, probes={}, optimizer="adam"):
        tables = dict(streams=[dict(name=stream, **of_stream)], methods=[dict(name="plain")], optimizers=[dict(name=optimizer, learning_rate=[1e-3], **of_optimizer)],
                      **(dict(networks=[of_network]) if of_network else {}))
        (tmp_path / "study.toml").write_bytes(document(dict(seeds=[0], probes=probes, **tables)))
        run, = planned(tmp_path / "study.toml", tmp_path)
        return run
    return run


@pytest.mark.parametrize("stream", OF_STREAMS)
def test_what_is_not_named_has_its_default(stream, planned_with):
    "Its own, wherever it is defined; never the small value with which the experiment notebook is run by hand."
    p, fields = planned_with(stream).params, streams[stream]()
    assert {n: p[n] for n in streams[stream].model_fields if n != "root"} == fields.model_dump(exclude={"root"})
    assert p["network"] == dict(name=fields.network, **networks[fields.network]().model_dump())
    assert (p["optimizer_options"], p["probes"], p["hyper"]) == (optimizers["adam"]().model_dump(), Probes().model_dump(), {})


@pytest.mark.parametrize("stream", OF_STREAMS)
def test_every_option_of_a_stream_reaches_its_runs(stream, planned_with):
    assert set(streams) == {*OF_STREAMS, "slowly_changing_regression"} and set(OF_STREAMS[stream]) == set(streams[stream].model_fields) - {"root"}
    for name, given in OF_STREAMS[stream].items():
        assert given[name] != streams[stream].model_fields[name].get_default()
        expected = dict(streams[stream]().model_dump(exclude={"root"}), **given)
        p = planned_with(stream, given).params
        assert {n: p[n] for n in expected} == expected
    assert planned_with(stream, dict(root="/data")).root == "/data" # where the data is decides nothing


@pytest.mark.parametrize("stream", OF_STREAMS)
def test_every_parameter_of_a_stream_reaches_it_in_the_notebook(stream):
    "Each option is an argument of the call of `stream`, under its own name."
    source = "\n".join("".join(c["source"]) for c in cells(Path("nbs/experiments") / f"{stream}.ipynb") if c["cell_type"] == "code")
    call, = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "stream")
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    assert ast.unparse(call.args[0]) == repr(stream) and set(given) == set(streams[stream].model_fields)
    assert all(value == name for name, value in given.items() if name != "root") and given["root"] in ("root", "root or None")


@pytest.mark.parametrize("stream", TABLE_1)
def test_every_option_of_networks_optimizers_and_probes_reaches_the_runs(stream, planned_with):
    own = {n: f for n, f in networks.items() if n in ("mlp", "cnn")} # those of modules are in test_modules
    for kind, options in ((own, OF_NETWORKS), (optimizers, OF_OPTIMIZERS)): assert {n for fields in kind.values() for n in fields.model_fields} == set(options)
    assert set(Probes.model_fields) == set(OF_PROBES)
    for name, fields in own.items():
        for option in fields.model_fields:
            p = planned_with(stream, of_network={"name": name, option: OF_NETWORKS[option]}).params
            assert p["network"] == {"name": name, **fields().model_dump(), option: OF_NETWORKS[option]}
    for name, fields in optimizers.items():
        for option in fields.model_fields:
            p = planned_with(stream, of_optimizer={option: OF_OPTIMIZERS[option]}, optimizer=name).params
            assert p["optimizer_options"] == {**fields().model_dump(), option: OF_OPTIMIZERS[option]}
    for option, value in OF_PROBES.items(): assert planned_with(stream, probes={option: value}).params["probes"] == {**Probes().model_dump(), option: value}


OLDER = {"full/permuted_mnist", "full/forgetting"} # kept before tables had a digest of the code

KEPT = sorted(str(p.relative_to(ROOT / "results").with_suffix("")) for p in (ROOT / "results").rglob("*.json"))


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_table_is_of_its_study_as_it_is_now(name, tmp_path):
    "What it says of itself, its scale and its runs."
    kept, file = json.loads((ROOT / f"results/{name}.json").read_text()), ROOT / f"studies/{name}.toml"
    study = tomllib.loads(file.read_text())
    assert kept["study"] == name and kept["command"] == f"l2init run studies/{name}.toml" and kept["about"] == " ".join(study["about"].split())
    assert bool(kept.get("code")) != (name in OLDER)
    if name.startswith("howto/"): return # with a plugin beside it
    said = lambda scales: {re.sub(r"\. [\d,]+ learners\.$", "", s) for s in scales}
    assert said(scales(planned(file, tmp_path))) == said(kept["scale"])


def test_small_tables_are_of_one_version_of_the_code():
    "So that differences between them are none of versions."
    assert len({tuple(json.loads((ROOT / f"results/{name}.json").read_text())["code"]) for name in KEPT if name.startswith("small/")}) == 1
