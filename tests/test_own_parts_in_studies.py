"""Networks, methods and reports of one's own in a study: what cannot work is said in one line, before anything is trained or written."""
import json
import sys

import pytest
from processes import l2init
from test_bad_input import STUDY, document, project, refused # noqa: F401, a fixture

from l2init.cohorts import Cohort
from l2init.internals.core import PLUGIN, InputError, forget
from l2init.internals.runs import told_apart
from l2init.methods import COLUMNS, grid
from l2init.plots import _in_words
from l2init.results import _check_same
from l2init.streams import stream
from l2init.studies import plan
from l2init.training import Probes, train

NETWORK = """
import random
import torch
from torch import nn
from l2init.modules import ModuleArchitecture
from l2init.networks import networks

@networks.register("own_net")
class OwnNet(ModuleArchitecture):
    width: int = 8
    {options}
    def module(self, shape, classes):
        class Net(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.first, self.last = nn.Linear(3 * 32 * 32, width), nn.Linear(width, classes)
            def forward(self, x):
                {forward}
        return Net({width})
"""
METHOD = """
from l2init.internals.core import Options
from l2init.methods import Method, methods
from l2init.parts import Part

class Hyper(Options):
    {hyper}: float = 1.

class Own(Part):
    title, source, hyper = "Own", "a test", Hyper
    {body}

methods.register("own", Method("Own", parts=[Own]))
"""
GOOD = "return self.last(self.first(x.flatten(1)).relu())"


def net(options="", forward=GOOD, width="self.width"): return NETWORK.format(options=options, forward=forward, width=width)


def own(hyper="strength", body="def after_step(self, seen, step): pass"): return METHOD.format(hyper=hyper, body=body)


def shuffled(permutation):
    return net(forward="return self.last(self.first(x.flatten(1)[:, self.order]).relu())").replace(
        "nn.Linear(width, classes)", f"nn.Linear(width, classes)\n                self.order = {permutation}(3 * 32 * 32)")


ON_IT = dict(networks=[dict(name="own_net")], plugins=["own.py"])
WITH_IT = dict(methods=[dict(name="own")], plugins=["own.py"])
PLAIN = [dict(name="plain")]
CASES = { # plugin, what is changed in the study, what is said
    "a hyper-parameter that is a column": (own("counts"), WITH_IT, ["method Own", "'counts'", "another column"]),
    "a hyper-parameter that is a parameter of a run": (own("dataset"), WITH_IT, ["'dataset'", "another column"]),
    "a metric's name": (own("srank"), WITH_IT, ["'srank'", "another column"]),
    "a part that raises": (own(body="def start(self): return 1 / 0"), WITH_IT, ["own", "network mlp", "cannot be made: ZeroDivisionError"]),
    "an option that a cohort is told": (net("shape: int = 4"), ON_IT, ["network own_net", "'shape'"]),
    "an option that is a name": (net("name: str = 'a'"), ON_IT, ["network own_net", "'name'"]),
    "no hidden units": (net(forward="return self.last(self.first(x.flatten(1)))"), ON_IT | dict(methods=[*PLAIN, dict(name="redo", period=[2], threshold=[.1])]),
                        ["redo", "network own_net", "Hidden units are asked for"]),
    "a probe of units without any": (net(forward="return self.last(self.first(x.flatten(1)))"), ON_IT | dict(methods=PLAIN, probes=dict(grama=True)),
                                     ["network own_net", "The probe grama: Hidden units are asked for"]),
    "a method that is an option of others": (net(), ON_IT | dict(methods=[*PLAIN, dict(name="layer_norm")]), ["method Layer norm sets the option 'layer_norm'", "'own_net' does not have"]),
    "other outputs": (net(forward="return self.first(x.flatten(1))"), ON_IT, ["network own_net: The module gives (2, 8) for 2 inputs"]),
    "a misspelt option": (net(width="self.widht"), ON_IT, ["network own_net: The factory cannot make a module", "AttributeError"]),
    "a negative size": (net(), dict(ON_IT, networks=[dict(name="own_net", width=-3)]), ["network own_net: The factory cannot make a module", "RuntimeError"]),
    "a misspelt moment": (own(body="def directions(self, delta, grad, step): pass"), WITH_IT, ["cannot be imported", "Part Own: 'directions'", "Did you mean 'direction'"]),
    "a module as a network": (NETWORK.partition("@")[0] + "networks.register('own_net', nn.Linear)", ON_IT, ["cannot be imported", "network 'own_net'", "subclass of Options"]),
    "a decorator without a name": (net().replace('("own_net")', ""), ON_IT, ["A network is registered under a name", "my_network"]),
    "a part as a method": (own().replace('Method("Own", parts=[Own])', "Own"), WITH_IT, ["method 'own'", "instance of Method"]),
    "a name as a part": (own().replace("[Own]", '["l2"]'), WITH_IT, ["method Own: parts = 'l2'", "subclass of Part"]),
    "a dictionary of hyper-parameters": (own().replace('"a test", Hyper', '"a test", dict(strength=1.)'), WITH_IT, ["hyper = {'strength': 1.0}", "no subclass of Options"]),
    "a name given twice": (own() + 'methods.register("own", Method("Another", parts=[Own]))', WITH_IT, ["a method named 'own' already"]),
    "a list for each learner": (own("sizes").replace("float = 1.", "list[int] = [1, 2]"), WITH_IT, ["sizes = [1, 2]", "one number"]),
    "an option that is a class": (net("act: type = nn.ReLU"), ON_IT, ["network own_net: act = <class", "cannot be written to a file"]),
    "a gradient that is given back": (own(body="def gradient(self, theta, grad, step): return grad * 0"), WITH_IT, ["Own.gradient gives something back", "in place"]),
    "a step that is given back": (own(body="def direction(self, delta, grad, step): return delta * 0"), WITH_IT, ["Own.direction gives something back", "delta"]),
    "no weights to be measured": (own(body="def evaluated(self, theta): pass"), WITH_IT, ["Own.evaluated gives None"]),
    "some of the weights": (own(body="def evaluated(self, theta): return theta[:, 1:]"), WITH_IT, ["Own.evaluated gives"]),
    "a state that is a number": (own(body="def start(self): return dict(n=0)"), WITH_IT, ["Part Own: start() gives n = 0", "a row for each learner, here 1"]),
    "a state of no learner": (own(body="def start(self): return dict(n=self.stack.theta.new_zeros(3))"), WITH_IT, ["start() gives n = (3,)"]),
    "no state": (own(body="def start(self): pass"), WITH_IT, ["start() gives None", "dictionary"]),
    "a step that fails": (own(body="def after_step(self, seen, step): seen[0] / []"), WITH_IT, ["a step of training fails: TypeError"]),
    "a slope of another shape": (own().replace("Own(Part)", "Own(Penalty)").replace("import Part", "import Part\nfrom l2init.regularizers import Penalty").replace(
        "hyper = \"Own\", \"a test\", Hyper", "hyper = \"Own\", \"a test\", Penalty.hyper").replace("def after_step(self, seen, step): pass", "slope = staticmethod(lambda d: d.sum(1))"),
        dict(WITH_IT, methods=[dict(name="own", strength=[.1])]), ["Own: the slope is of shape (1,)"]),
    "a plugin that raises": (own() + "\n1 / 0", WITH_IT, [f"ZeroDivisionError: division by zero (line {own().count(chr(10)) + 2})"]),
    "a permutation of its own": (shuffled("torch.randperm"), ON_IT, ["network own_net", "neither a parameter nor a buffer", "register_buffer"]),
    "a permutation by NumPy": (shuffled("__import__('numpy').random.permutation"), ON_IT, ["network own_net", "neither a parameter nor a buffer"]),
    "two entries with the same learners": (own(), dict(methods=[dict(name="l2", strength=[1e-2, 1e-3]), dict(name="l2", strength=[1e-4, 1e-2])]), ["is in two entries", "strength = 0.01"]),
    "two words": (own("way").replace(": float = 1.", ": Literal['a', 'b'] = 'a'").replace("from l2init.methods", "from typing import Literal\nfrom l2init.methods"),
                  dict(WITH_IT, methods=[dict(name="own", way=["a", "b"])]), ["way = ['a', 'b']", "an entry of the method for itself"]),
    "other random numbers": (net(forward="return self.last(self.first(x.flatten(1)).relu() * random.random())"), ON_IT, ["network own_net", "something else each time"]),
}


@pytest.fixture(autouse=True)
def forgotten():
    "What plugins have registered is not there for other tests."
    yield
    for name in [n for n in sys.modules if n.startswith(PLUGIN)]:
        forget(name)
        del sys.modules[name]


@pytest.mark.parametrize("dry", (False, True))
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_trained_is_said_before(project, monkeypatch, capsys, case, dry):
    plugin, more, says = CASES[case]
    (project / "own.py").write_text(plugin)
    (project / "study.toml").write_bytes(document(dict(STUDY, **more)))
    line = refused(project, ["run", "study.toml", *["--dry-run"] * dry], monkeypatch, capsys)
    assert all(s in line for s in says), line


def test_a_report_of_kept_studies_is_refused(project, monkeypatch, capsys):
    (project / "study.toml").write_bytes(document(dict(STUDY, report="networks")))
    assert "report = 'networks': this notebook has no parameter `table`" in refused(project, ["run", "study.toml"], monkeypatch, capsys)


@pytest.mark.parametrize("workers", (0, -1))
def test_a_dry_run_wants_workers(project, monkeypatch, capsys, workers):
    (project / "study.toml").write_bytes(document(STUDY))
    assert f"workers = {workers}: it must be more than 0" in refused(project, ["run", "study.toml", "--dry-run", "--workers", str(workers)], monkeypatch, capsys)


def test_a_missing_list_of_learning_rates(project, monkeypatch, capsys):
    (project / "study.toml").write_bytes(document(dict(STUDY, optimizers=[dict(name="adam", learning_rates=[1e-3])])))
    assert "learning_rate, a list, is missing, and learning_rates is no option" in refused(project, ["run", "study.toml"], monkeypatch, capsys)


def test_every_column_of_metrics_is_reserved():
    s = stream("random_label_mnist", dataset="mnist5k", tasks=2, examples=32, passes=2)
    probes = Probes(fresh=1, forgetting=True, plasticity=2, readiness=1, grama=True, converged=.5, kernel=4)
    numbers = stream("slowly_changing_regression", examples=40, tasks=2)
    made = [train(Cohort(grid("plain", [0], [1e-3]), s.shape, s.outputs, "plain", hidden=[8]), s, progress=False, **probes.model_dump()),
            train(Cohort(grid("plain", [0], [1e-3]), numbers.shape, numbers.outputs, "plain", hidden=[8], loss=numbers.loss), numbers, progress=False)]
    for metrics in made: assert set(metrics) <= COLUMNS, set(metrics) - COLUMNS


def test_networks_are_told_apart(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "study.toml").write_bytes(document(dict(STUDY, networks=[dict(name="mlp", hidden=[8]), dict(name="mlp", hidden=[9]), dict(name="cnn", channels=[2, 2])])))
    planned = plan("study.toml")
    assert sorted(told_apart(planned).network) == ["cnn", "mlp hidden=[8]", "mlp hidden=[9]"]
    assert _in_words('{"name": "mlp", "hidden": [9]}') == "mlp, hidden = [9]" and _in_words("mlp") == "mlp"


def test_runs_are_told_apart_by_what_is_unlike_the_others(project, monkeypatch):
    monkeypatch.chdir(project)
    methods = [dict(name="l2", strength=[1e-2, 1e-3]), *[dict(name="redo", period=[n], threshold=[.1]) for n in (2, 2, 3)]]
    methods[2]["moments"] = ["kept"]
    scaled = [dict(STUDY["streams"][0], scaling=s) for s in ("dataset", "unit")]
    (project / "study.toml").write_bytes(document(dict(STUDY, streams=scaled, methods=methods)))
    table = told_apart(plan("study.toml"))
    assert set(table.stream) == {f"{STUDY['streams'][0]['name']} scaling={s}" for s in ("dataset", "unit")}
    assert set(table.method) == {"l2", "redo", "redo moments=kept", "redo period=3"} and set(table.optimizer) == {"adam"}
    assert "redo moments=kept" in l2init(project, "status", "study.toml").stdout


def test_what_a_plugin_prints_is_not_part_of_a_table(project):
    (project / "prints.py").write_text(own() + "print('hello')")
    (project / "study.toml").write_bytes(document(dict(STUDY, **WITH_IT | dict(plugins=["prints.py"]))))
    assert l2init(project, "run", "study.toml").returncode == 0
    shown = l2init(project, "table", "study.toml", "--csv")
    assert shown.stdout.partition(",")[0] in ("method", "stream") and "hello" in shown.stderr, shown


def test_the_kept_table_of_another_study_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "exp.toml").write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "exp.json").write_text(json.dumps(dict(command="l2init run x/exp.toml")))
    _check_same(tmp_path / "results" / "exp.json", f"l2init run {tmp_path}/x/exp.toml") # the same, from elsewhere
    _check_same(tmp_path / "results" / "exp.json", "l2init run z/exp.toml") # it was moved
    with pytest.raises(InputError, match="is the table of another study, x/exp.toml"): _check_same(tmp_path / "results" / "exp.json", "l2init run y/exp.toml")


def test_a_parameter_that_the_stream_does_not_have(project, monkeypatch, capsys):
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    text = notebook.read_text()
    try:
        notebook.write_text(text.replace('"seeds: list[int]', '"fresh_subset: bool = False\\n",\n    "seeds: list[int]', 1))
        assert notebook.read_text() != text
        (project / "study.toml").write_bytes(document(STUDY))
        assert "declares the parameter fresh_subset, which stream random_label_mnist does not have" in refused(project, ["run", "study.toml", "--dry-run"], monkeypatch, capsys)
    finally: notebook.write_text(text)


NOT_GIVEN = { # what is put in the place of what, and what is said
    "an option": (", labels=labels", "", ["declares the parameter labels, but does not give it to stream", "labels=labels"]),
    "the name": ('stream(\\"random_label_mnist\\"', 'stream(\\"permuted_mnist\\"', ["makes the stream 'permuted_mnist', and not 'random_label_mnist'"]),
    "a name that is written": ('stream(\\"random_label_mnist\\"', 'stream(NAME', ["makes the stream NAME, and not 'random_label_mnist'", "with the name as it is"]),
    "anything": ("s = stream(", "s = made(", ["has no call of stream('random_label_mnist', …)"]),
}


@pytest.mark.parametrize("what", NOT_GIVEN)
def test_a_notebook_gives_its_stream_all_that_it_declares(project, monkeypatch, capsys, what):
    notebook, (old, new, says) = project / "nbs" / "experiments" / "random_label_mnist.ipynb", NOT_GIVEN[what]
    text = notebook.read_text()
    try:
        notebook.write_text(text.replace(old, new))
        assert notebook.read_text() != text
        (project / "study.toml").write_bytes(document(STUDY))
        line = refused(project, ["run", "study.toml", "--dry-run"], monkeypatch, capsys)
        assert all(s in line for s in says), line
    finally: notebook.write_text(text)


def test_a_notebook_may_make_another_stream_beside_its_own(project, monkeypatch):
    notebook = project / "nbs" / "experiments" / "random_label_mnist.ipynb"
    text = notebook.read_text()
    try:
        notebook.write_text(text.replace('"s = stream(', '"other = stream(name=NAME)\\n",\n    "s = stream('))
        (project / "study.toml").write_bytes(document(STUDY))
        monkeypatch.chdir(project)
        assert notebook.read_text() != text and plan(project / "study.toml", project / "runs")
    finally: notebook.write_text(text)


OWN_STREAM = """
import torch
from l2init.streams import Stream, streams

@streams.register("own_stream")
class OwnStream(Stream):
    title = "Own"
    source = "a test"
    dataset: str = "mnist5k"
    tasks: int = 2
    examples: int = 32
    def train_examples(self, index, seeds):
        d = self.data(seeds.device)
        s = self.subset(seeds)
        return d.images[s], d.labels[s]
    def test_examples(self, index, seeds):
        d = self.data(seeds.device)
        return d.test_images[:20].expand(len(seeds), -1, -1, -1, -1), d.test_labels[:20].expand(len(seeds), -1)
"""
STREAMS = {
    "as it is": ("", "", []),
    "no title": ('title = "Own"', "pass", ["Stream OwnStream has no title"]),
    "a misspelt method": ("def test_examples", "def tests_examples", ["Stream OwnStream defines no test_examples"]),
    "labels from 1": ("d.test_labels[:20]", "(1 + d.test_labels[:20])", ["test examples: The labels go from 1 to 10"]),
    "no channels": ("d.images[s], d", "d.images[s][:, :, 0], d", ["images are of shape (28, 28), the network is for (1, 28, 28)"]),
    "no notebook": ("own_stream", "own_other", ["The stream 'own_other' has no experiment notebook", "--experiment permuted_mnist"]),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_that_does_not_fit_is_said_before(project, monkeypatch, capsys, case):
    old, new, says = STREAMS[case]
    text = (project / "nbs" / "experiments" / "random_label_mnist.ipynb").read_text()
    (project / "nbs" / "experiments" / "own_stream.ipynb").write_text(text.replace('stream(\\"random_label_mnist\\"', 'stream(\\"own_stream\\"')
                                                                     .replace("labels: str", "# labels: str").replace(", labels=labels", ""))
    (project / "own.py").write_text(OWN_STREAM.replace(old, new))
    name = "own_other" if case == "no notebook" else "own_stream"
    (project / "study.toml").write_bytes(document(dict(STUDY, streams=[dict(name=name)], plugins=["own.py"])))
    if not says: return print(l2init(project, "run", "study.toml", "--dry-run").stdout)
    line = refused(project, ["run", "study.toml"], monkeypatch, capsys)
    assert all(s in line for s in says), line
