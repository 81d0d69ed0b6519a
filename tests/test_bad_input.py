"""Whatever stands in a study file: it plans, or one line says what is wrong, with status 2 and no file left. Nothing in it is ever evaluated."""
import ast
import copy
import datetime
import json
import shutil
import sys

import papermill.translators
import pytest
from hypothesis import given, settings, strategies as st
from processes import BIN, ROOT, run

from l2init import cli
from l2init.methods import methods
from l2init.training import Probes
from l2init.internals.core import InputError
from l2init.networks import networks
from l2init.plots import comparison, learning_curves, numbers
from l2init.results import keep, kept
from l2init.streams import streams
from l2init.internals.runs import papermill_to
from l2init.studies import plan

STUDY = dict(
    about="", seeds=[0, 1], select_seeds=[], protocol="paper", plugins=[], probes={},
    streams=[dict(name="random_label_mnist", dataset="synthetic_images_10x40", tasks=2, examples=32, passes=2)],
    methods=[dict(name="l2_init", strength=[1e-2, 1e-3])],
    optimizers=[dict(name="adam", learning_rate=[1e-3])],
    networks=[dict(name="mlp", hidden=[8])])
CNN = [dict(name="cnn")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project with our experiment notebooks, a report and what a path trick could reach."
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "nbs" / "experiments", folder / "nbs" / "experiments")
    (folder / "nbs" / "reports").mkdir()
    shutil.copy(ROOT / "nbs" / "reports" / "demo.ipynb", folder / "nbs" / "reports")
    (folder / "folder.toml").mkdir()
    (folder / "broken.py").write_text("raise SystemExit('two\\nlines')")
    (folder / "studies").mkdir()
    (folder.parent / "outside.py").write_text("open('evaluated', 'w')")
    return folder


def toml(value)->str:
    "A value as TOML."
    match value:
        case bool(): return str(value).lower()
        case str(): return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'
        case dict(): return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case list(): return "[" + ", ".join(map(toml, value)) + "]"
        case datetime.date() | datetime.time(): return value.isoformat()
        case int(): return str(value) if value.bit_length() < 10_000 else hex(value)
        case float(): return repr(value)


def document(study:dict)->bytes: return "".join(f"{toml(k)} = {toml(v)}\n" for k, v in study.items()).encode()


def changed(*path, to)->bytes:
    "The study file with another value in one place."
    study = copy.deepcopy(STUDY)
    place = study
    for part in path[:-1]: place = place[part]
    place[path[-1]] = to
    return document(study)


def files(project): return sorted(str(p) for p in project.parent.rglob("*") if p.name != "study.toml" and "__pycache__" not in str(p))


def attempt(project, content:bytes, data=True):
    "The runs of a study file, or the error, which is one short line. Nothing is left."
    (project / "study.toml").write_bytes(content)
    try: return plan(project / "study.toml", project / "runs", data)
    except InputError as e:
        assert len(str(e).splitlines()) == 1 and len(str(e)) < 1000
        return e


def deep(n, inside=1):
    for _ in range(n): inside = [inside]
    return inside


STREAM, METHOD, OPTIMIZER, NETWORK = (("streams", 0), ("methods", 0), ("optimizers", 0), ("networks", 0))
# What is wrong -> the study file, and what the message says
CASES = {
    # types
    "a bool for an integer": (changed(*STREAM, "tasks", to=True), ["tasks = True", "valid integer"]),
    "a bool as seed": (changed("seeds", to=[True]), ["seeds.0 = True", "valid integer"]),
    "a real number as seed": (changed("seeds", to=[1.]), ["seeds.0 = 1.0", "valid integer"]),
    "a string for a list": (changed("seeds", to="0, 1"), ["seeds = '0, 1'", "valid list"]),
    "a table where a number belongs": (changed(*STREAM, "tasks", to=dict(of=dict(many=2))), ["tasks = {'of': {'many': 2}}", "valid integer"]),
    "a table where a list belongs": (changed(*METHOD, "strength", to=dict(a=1)), ["strength = {'a': 1} is not a list"]),
    "a number where a list belongs": (changed(*OPTIMIZER, "learning_rate", to=1e-3), ["learning_rate = 0.001 is not of type list[float]"]),
    "a list in a list": (changed(*METHOD, "strength", to=[[1e-2]]), ["strength = [0.01]", "valid number"]),
    "a date as strength": (changed(*METHOD, "strength", to=[datetime.date(2024, 1, 1)]), ["strength = datetime.date(2024, 1, 1)", "valid number"]),
    "a date as option of a network": (changed(*NETWORK, "hidden", to=datetime.date(2024, 1, 1)), ["network mlp: hidden = datetime.date(2024, 1, 1)", "valid list"]),
    "a string among units": (changed(*NETWORK, "hidden", to=[8, "8"]), ["hidden.1 = '8'", "valid integer"]),
    "a table for a list of tables": (changed("methods", to=dict(name="plain")), ["methods = {'name': 'plain'}", "valid list, of tables [[methods]]"]),
    "a string for a table": (changed("streams", to=["random_label_mnist"]), ["streams.0 = 'random_label_mnist'", "valid dictionary"]),
    "a number as name": (changed(*METHOD, "name", to=7), ["methods.0.name = 7", "valid string"]),
    "no name": (changed("methods", to=[{}]), ["methods.0.name", "required"]),
    "probes as a list": (changed("probes", to=[]), ["probes = []", "valid dictionary"]),
    "a string as probe option": (changed("probes", to=dict(fresh="5")), ["probes: fresh = '5'", "valid integer"]),
    "a number as report": (changed("report", to=1), ["report = 1", "valid string"]),
    "a string as plugins": (changed("plugins", to="my_method.py"), ["plugins = 'my_method.py'", "valid list"]),
    # ranges
    "a number of 401 digits": (changed(*STREAM, "tasks", to=10**400), ["tasks = 1000", "less than or equal to 1000000000"]),
    "a number that Python does not write": (changed(*STREAM, "tasks", to=1 << 50_000), ["tasks = an integer of 50,001 bits"]),
    "a number that Python does not read": (b"seeds = [" + b"9" * 5000 + b"]", ["is not TOML", "4300 digits"]),
    "more tasks than can be": (changed(*STREAM, "tasks", to=10**9), ["tasks = 1000000000", "at most 1,000,000"]),
    "more tasks than there are classes": (changed("streams", to=[dict(name="continual_imagenet", dataset="synthetic_images_6x42", each=36, examples=72, batch_size=24, tasks=10**6)]), ["1000000 tasks need 2000000 classes"]),
    "more examples than there are": (changed(*STREAM, "examples", to=10**9), ["1000000000 examples is larger than data set synthetic_images_10x40, which has 350"]),
    "no examples": (changed(*STREAM, "examples", to=0), ["examples = 0", "greater than or equal to 1"]),
    "a negative batch": (changed(*STREAM, "batch_size", to=-16), ["batch_size = -16", "greater than or equal to 1"]),
    "an enormous data set": (changed(*STREAM, "dataset", to="synthetic_images_999999999x999999999"), ["synthetic_images_999999999x999999999", "at most 10,000,000 images"]),
    "enormous layers": (changed(*NETWORK, "hidden", to=[10**9]), ["hidden.0 = 1000000000", "less than or equal to 1000000"]),
    "an enormous network": (changed(*NETWORK, "hidden", to=[10**6, 10**6]), ["4 learners have", "at most 10,000,000,000"]),
    "units beyond real numbers": (changed("networks", to=[dict(name="mlp", hidden=[10**400], activation="crelu")]), ["hidden.0 = 1000", "less than or equal to 1000000"]),
    "no units": (changed(*NETWORK, "hidden", to=[0]), ["hidden.0 = 0", "greater than or equal to 1"]),
    "kernels larger than images": (changed("networks", to=[dict(name="cnn", kernels=[33, 5])]), ["images of 32×32 are too small"]),
    "channels without kernels": (changed("networks", to=[dict(name="cnn", channels=[4])]), ["1 channels but 2 kernels"]),
    "a seed beyond 64 bits": (changed("seeds", to=[2**63]), ["seeds.0 = 9223372036854775808", "less than 9223372036854775808"]),
    "a negative seed": (changed("seeds", to=[0, -1]), ["seeds.1 = -1", "greater than or equal to 0"]),
    "a negative seed for later": (document(dict(STUDY, select_seeds=[2], seeds=[-1])), ["seeds.0 = -1"]),
    "no seeds": (changed("seeds", to=[]), ["seeds = []", "at least 1 item"]),
    "a rate that is no number": (changed(*OPTIMIZER, "learning_rate", to=[float("nan")]), ["learning_rate = nan"]),
    "an infinite rate": (changed(*OPTIMIZER, "learning_rate", to=[float("inf")]), ["learning_rate = inf", "finite"]),
    "a rate beyond single precision": (changed(*OPTIMIZER, "learning_rate", to=[1e308]), ["learning_rate = 1e+308", "at most 3.4e+38"]),
    "a rate of zero": (changed(*OPTIMIZER, "learning_rate", to=[0]), ["learning_rate = 0", "greater than 0"]),
    "a strength of 401 digits": (changed(*METHOD, "strength", to=[10**400]), ["strength = 1000", "at most 3.4e+38"]),
    "a share of more than all": (changed("methods", to=[dict(name="shrink_perturb", shrink=[1.5], noise=[0.])]), ["shrink = 1.5", "less than or equal to 1"]),
    "a period beyond single precision": (changed("methods", to=[dict(name="redo", period=[10**40], threshold=[.1])]), ["period = 1000", "less than or equal to 16777216"]),
    "an infinite threshold of dormant units": (changed("probes", to=dict(dormant=float("inf"))), ["dormant = inf", "finite"]),
    "a negative probe": (changed("probes", to=dict(fresh=-1)), ["fresh = -1", "greater than or equal to 0"]),
    "too many learners": (changed(*METHOD, "strength", to=[i / 2**20 for i in range(60_000)]), ["120,000 learners", "at most 100,000"]),
    "too many runs": (document(dict(STUDY, methods=[dict(name="plain")] * 101, networks=CNN * 100)), ["10,100 runs", "at most 10,000"]),
    # empty, twice, at odds
    "no streams": (changed("streams", to=[]), ["streams = []", "at least 1 item"]),
    "no methods": (changed("methods", to=[]), ["methods = []", "at least 1 item"]),
    "no rates": (changed(*OPTIMIZER, "learning_rate", to=[]), ["learning_rate is an empty list"]),
    "a method twice": (changed("methods", to=[dict(name="plain")] * 2), ["the run random_label_mnist · plain · adam is there twice"]),
    "a network twice": (changed("networks", to=[dict(name="mlp", hidden=[8])] * 2), ["is there twice"]),
    "a value twice": (changed(*METHOD, "strength", to=[.1, .1]), ["'strength': 0.1", "trained twice"]),
    "a value twice, as integer and as real number": (changed(*METHOD, "strength", to=[1, 1.]), ["'strength': 1.0", "trained twice"]),
    "a seed twice": (changed("seeds", to=[3, 0, 3]), ["seed 3 is in seeds twice"]),
    "a seed twice in the later phase": (document(dict(STUDY, select_seeds=[2], seeds=[0, 0])), ["seed 0 is in seeds twice"]),
    "a seed in both phases": (changed("select_seeds", to=[1, 2]), ["seed 1 is in seeds and in select_seeds"]),
    "a key twice": (b"seeds = [0]\nseeds = [1]", ["is not TOML", "Cannot overwrite a value"]),
    # names
    "a protocol that there is not": (changed("protocol", to="papers"), ["protocol = 'papers'", "'paper' or 'code'"]),
    "a hyper-parameter of another method": (changed(*METHOD, "delta", to=[1.]), ["hyper-parameter of method l2_init 'delta'", "Allowed: strength"]),
    "an option of another network": (changed(*NETWORK, "channels", to=[8]), ["option of network mlp 'channels'", "Allowed: layer_norm"]),
    "an option of another stream": (changed(*STREAM, "first_identity", to=True), ["option of stream random_label_mnist 'first_identity'"]),
    "an option of another optimizer": (changed(*OPTIMIZER, "momentum", to=.9), ["option of optimizer adam 'momentum'", "Allowed: beta1"]),
    "an option of Adam that is too large": (changed(*OPTIMIZER, "beta1", to=1.), ["optimizer adam: beta1 = 1.0", "less than 1"]),
    "a misspelt probe": (changed("probes", to=dict(frehs=5)), ["option of probes 'frehs'", "Did you mean 'fresh'"]),
    "a parameter that says where": (changed(*STREAM, "folder", to="/tmp"), ["option of stream random_label_mnist 'folder'"]),
    "Python's own names": (changed("probes", to={"self": 1, "__class__": 2}), ["option of probes"]),
    "a name in other letters": (changed(*METHOD, "name", to="ｌ２＿ｉｎｉｔ"), ["Unknown method 'ｌ２＿ｉｎｉｔ'"]),
    "a name in capitals": (changed(*METHOD, "name", to="L2_INIT"), ["Did you mean 'l2_init'"]),
    "a name with a space that joins": (changed(*METHOD, "name", to="l2_init\u2060"), [r"'l2_init\u2060'", "Did you mean 'l2_init'"]),
    "a name of a million letters": (changed(*METHOD, "name", to="l" * 10**6), ["Unknown method 'lll"]),
    "a name with line breaks": (changed(*STREAM, "name", to="\r\n\u2028x"), [r"Unknown stream '\r\n\u2028x'"]),
    "an empty key": (b'"" = 1\n' + document(STUDY), ["Unknown option", "''"]),
    # paths
    "a stream elsewhere": (changed(*STREAM, "name", to="../experiments/random_label_mnist"), ["Unknown stream '../experiments/random_label_mnist'", "Did you mean 'random_label_mnist'"]),
    "a report elsewhere": (changed("report", to="../experiments/permuted_mnist"), ["Unknown report '../experiments/permuted_mnist'", "Allowed: ablations"]),
    "a report by a detour": (changed("report", to="../reports/demo"), ["Unknown report '../reports/demo'", "Allowed: ablations"]),
    "a report at an absolute path": (changed("report", to=str(ROOT / "nbs" / "reports" / "demo")), ["Unknown report", "Allowed: ablations"]),
    "a report with a null byte": (changed("report", to="demo\0"), [r"Unknown report 'demo\x00'", "Did you mean 'demo'"]),
    "a report with a name that is too long": (changed("report", to="d" * 5000), ["Unknown report 'ddd"]),
    "a report without a name": (changed("report", to=""), ["Unknown report ''"]),
    "a plugin above": (changed("plugins", to=["../outside.py"]), ["plugins: '../outside.py' is not the name of a Python file beside the study file"]),
    "a plugin at an absolute path": (changed("plugins", to=["/etc/passwd"]), ["plugins: '/etc/passwd' is not the name"]),
    "a plugin that is no Python": (changed("plugins", to=["study.toml"]), ["plugins: 'study.toml' is not the name"]),
    "a plugin with a null byte": (changed("plugins", to=["a\0.py"]), [r"plugins: 'a\x00.py' is not the name"]),
    "a plugin with a separator of paths": (changed("plugins", to=["a:b.py"]), ["plugins: 'a:b.py' is not the name"]),
    "a plugin that is not there": (changed("plugins", to=["brokn.py"]), ["Unknown plugin", "broken.py"]),
    "a plugin with a name that is too long": (changed("plugins", to=["p" * 5000 + ".py"]), ["Unknown plugin"]),
    "a plugin that ends Python": (changed("plugins", to=["broken.py"]), ["broken.py cannot be imported: SystemExit: two lines"]),
    "a root of nobody": (changed(*STREAM, "root", to="~nobody_of_this_name/data"), ["root = '~nobody_of_this_name/data'", "no such user"]),
    "a root with a null byte": (changed(*STREAM, "root", to="da\0ta"), [r"root = 'da\x00ta'", "null byte"]),
    "a data set elsewhere": (changed(*STREAM, "dataset", to="../mnist5k"), ["Data set '../mnist5k' cannot be used", "nothing is there"]),
    "a data set with line breaks": (changed(*STREAM, "dataset", to="mnist5k\n"), [r"Unknown data set 'mnist5k\n'", "Did you mean 'mnist5k'"]),
    # files
    "bytes that are no text": (bytes(range(256)), ["is not TOML", "can't decode byte"]),
    "another encoding": (document(STUDY).decode().encode("utf-16"), ["is not TOML", "can't decode byte"]),
    "Latin letters of one byte": ('about = "Zürich"'.encode("latin-1"), ["is not TOML", "can't decode byte"]),
    "a null byte": (b"seeds = [0]\0", ["is not TOML", "line 1"]),
    "an empty file": (b"", ["seeds: Field required"]),
    "JSON": (json.dumps(STUDY).encode(), ["is not TOML", "line 1"]),
    "a hundred thousand brackets": (b"seeds = " + b"[" * 10**5, ["nested too deeply"]),
    "lists in lists": (changed("seeds", to=deep(80)), ["seeds.0 = [[", "valid integer"]),
    "tables in tables": (b".".join([b"seeds"] + [b"a"] * 10**4) + b" = 1", ["seeds = {'a': {'a'", "valid list"]),
    "a date that there is not": (b"seeds = [2023-02-30]", ["is not TOML"]),
}


def refused(project, args, monkeypatch, capsys):
    "The one line with which the command ends, with status 2 and without having left a file."
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["l2init", *args])
    monkeypatch.setattr("signal.signal", lambda *_: None) # the command's, not the test's
    before = files(project)
    with pytest.raises(SystemExit) as ended: cli.main()
    out = capsys.readouterr()
    assert ended.value.code == 2 and out.out == "" and files(project) == before
    line, = out.err.splitlines()
    assert line.startswith("l2init: ") and len(line) < 1000
    return line


@pytest.mark.parametrize("case", CASES)
def test_bad_study_files(project, monkeypatch, capsys, case):
    content, says = CASES[case]
    (project / "study.toml").write_bytes(content)
    line = refused(project, ["run", "study.toml"], monkeypatch, capsys)
    assert all(s in line for s in says), line


@pytest.mark.parametrize("file, says", {
    "folder.toml": "folder.toml is not a file", "nowhere/study.toml": "Unknown study file", "studdy.toml": "Did you mean 'study.toml'", ".": "is not", "/": "is not", "": "is not",
    "/dev/zero": "is not a file", "a b.toml": "letters, digits", "studies/../../x.toml": "'..' is not", "x" * 5000: "too long", "/dev/null/x.toml": "Not a directory",
}.items())
def test_bad_places_of_study_files(project, monkeypatch, capsys, file, says):
    (project / "study.toml").write_bytes(document(STUDY))
    assert says in refused(project, ["run", file], monkeypatch, capsys)


def test_the_command_itself(project):
    content, says = CASES["a report elsewhere"]
    (project / "study.toml").write_bytes(content)
    before = files(project)
    ended = run([BIN / "l2init", "run", "study.toml"], cwd=project)
    assert ended.returncode == 2 and ended.stdout == "" and len(ended.stderr.splitlines()) == 1 and all(s in ended.stderr for s in says), ended.stderr
    assert files(project) == before


# Parameters are data.

CODE = ["__import__('os').system('touch evaluated')", "');open('evaluated','w')#", '");open("evaluated","w")#', '"""\nopen("evaluated", "w")\n"""', "'''\nopen('evaluated', 'w')\n'''",
        "\\\");open('evaluated', 'w')#", "\nopen('evaluated', 'w')\n", "\r!touch evaluated", "%system touch evaluated", "$(touch evaluated)", "`touch evaluated`", "{open('evaluated', 'w')}", "a\\", "\\N{BULLET}\\x00\\"]


@pytest.mark.parametrize("code", CODE)
def test_nothing_is_evaluated(project, monkeypatch, code):
    monkeypatch.chdir(project)
    places = [("report",), ("protocol",), ("seeds",), ("probes",), ("plugins",), *((*p, "name") for p in (STREAM, METHOD, OPTIMIZER, NETWORK)), (*STREAM, "dataset"), (*STREAM, "tasks"), (*STREAM, "labels"),
              (*METHOD, "strength"), (*OPTIMIZER, "learning_rate"), (*NETWORK, "activation"), (*NETWORK, "hidden"), ("seeds", 0), (*METHOD, "strength", 0)]
    for path in places: assert isinstance(attempt(project, changed(*path, to=code)), InputError), path
    for path, value in (("probes", {code: 1}), ("plugins", [code])): assert isinstance(attempt(project, changed(path, to=value)), InputError)
    for path in (("about",), (*STREAM, "root")):
        run, = attempt(project, changed(*path, to=code))
        assert run.root == ("" if path == ("about",) else str(project / code))
    assert not [p for p in project.parent.rglob("evaluated")]


def test_strings_come_into_a_notebook_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [dict(cell_type="code", id=f"c{i}", metadata=dict(tags=["parameters"] * (not i)), source=s, outputs=[], execution_count=None) for i, s in enumerate(
        ('about: str = ""\nprobes: dict = {}', "import json\nopen('given.json', 'w').write(json.dumps([about, probes]));"))]
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"), language_info=dict(name="python"))
    (tmp_path / "notebook.ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    strings = CODE + ["\u2028\x85\f\v\x1b[0m", "Zürich 😀", "\t'\"" * 50]
    given = dict(about="".join(strings), probes={s: [s, {s: s}] for s in strings})
    papermill_to(tmp_path / "notebook.ipynb", tmp_path / "out.ipynb", given)
    assert json.loads((tmp_path / "given.json").read_text()) == [given["about"], given["probes"]]
    assert not list(tmp_path.rglob("evaluated"))


some = settings(deadline=None, derandomize=True, database=None, max_examples=60)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
big = st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 2**64, -2**63, 10**400, -10**400]) | st.integers()
moments = st.datetimes() | st.dates() | st.times()
floats = st.floats(allow_subnormal=False) # training switches them off in its process
scalars = st.booleans() | big | floats | texts | moments
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=3), max_leaves=6)
TRICKS = ["../", "./", "/", "\0", "\n", "*", "~", " ", ".", "%2e%2e/", "\\", "\ufeff", "A\u030a"]


@given(st.recursive(st.floats(allow_nan=False, allow_subnormal=False) | st.integers() | st.booleans() | texts, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=3)))
@settings(some, max_examples=200)
def test_parameters_are_written_as_the_same_values(value):
    assignment = ast.parse(papermill.translators.PythonTranslator.codify(dict(value=value))).body[-1].value
    assert ast.literal_eval(ast.unparse(assignment).replace("float('inf')", "1e999").replace("float('-inf')", "-1e999")) == value


paths = [(k,) for k in [*STUDY, "report", "seed"]] + [(*p, k) for p, more in ((STREAM, ["batch_size", "labels", "last_batch", "scaling", "root", "each"]), (METHOD, ["delta"]), (OPTIMIZER, ["beta1"]), (NETWORK, ["layer_norm", "activation", "removed", "init"]))
                                                      for k in [*STUDY[p[0]][0], *more]] + [(*METHOD, "strength", 0), (*NETWORK, "hidden", 0), ("seeds", 1), STREAM, METHOD, OPTIMIZER, NETWORK]


@given(st.sampled_from(paths), values)
@settings(some, max_examples=400)
def test_any_value_in_one_place(project, path, value):
    before = files(project)
    for data in (True, False): attempt(project, changed(*path, to=value), data)
    assert files(project) == before


@given(st.binary(max_size=60) | texts.map(str.encode) | st.lists(st.sampled_from(["seeds", "=", "[", "]", "{", "}", '"', "'", "\n", "#", ".", ",", "0", "-", "[[streams]]", "name", "inf", "1979-05-27", "\\u0000"]), max_size=12).map(lambda parts: " ".join(parts).encode()))
@settings(some, max_examples=150)
def test_any_file(project, content): assert isinstance(attempt(project, content), InputError)


@given(st.sampled_from([(*p, "name") for p in (STREAM, METHOD, OPTIMIZER, NETWORK)] + [("report",), ("plugins",), (*STREAM, "dataset")]), st.data())
@settings(some, max_examples=150)
def test_any_name(project, path, data):
    known = {"report": "demo", "plugins": "broken.py"}.get(path[0]) or STUDY[path[0]][0][path[-1]]
    name = data.draw(texts | st.builds(lambda trick, before: trick + known if before else known + trick, st.sampled_from(TRICKS), st.booleans()))
    assert isinstance(attempt(project, changed(*path, to=[name] if path == ("plugins",) else name)), InputError)


@given(st.sampled_from([*streams, *methods, *networks, "probes"]), st.data())
@settings(some, max_examples=300)
def test_any_options(project, name, data):
    "Options that exist, with any values, several at once."
    fields = next((kind[name] for kind in (streams, networks) if name in kind), None) or (methods[name].hyper if name in methods else Probes)
    options = data.draw(st.dictionaries(st.sampled_from([*fields.model_fields] or ["none"]), values | st.lists(scalars, max_size=3), min_size=1, max_size=3))
    if name == "probes": change = dict(probes=options)
    else:
        kind = "streams" if name in streams else "networks" if name in networks else "methods"
        change = {kind: [{**({"dataset": "synthetic_images_10x40"} if kind == "streams" else {}), **options, "name": name}]}
    attempt(project, document({**STUDY, **change}))


def test_tables_without_rows_and_studies_that_are_damaged(tmp_path):
    frame, _ = kept("demo", ROOT / "results")
    def refuses(does, says):
        with pytest.raises(InputError, match=says): does()
    for draws in (learning_curves, comparison, numbers): refuses(lambda: draws(frame[:0]), "no rows|0 rows")
    refuses(lambda: comparison(frame.assign(counts=False)), "counts")
    refuses(lambda: learning_curves(frame.assign(method="plian")), "plain")
    for name in ("demo.parquet", "demo.json"): shutil.copy(ROOT / "results" / name, tmp_path)
    (tmp_path / "demo.json").unlink()
    refuses(lambda: kept("demo", tmp_path), "JSON file beside it")
    (tmp_path / "demo.parquet").write_bytes(b"no table")
    refuses(lambda: kept("demo", tmp_path), "cannot be read")
    refuses(lambda: keep(frame, [], tmp_path, "l2init run"), "no runs")
