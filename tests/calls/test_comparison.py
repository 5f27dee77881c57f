"""``nonlin.compare`` and what it returns: the command line's study, as an object."""

import json
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from dataclasses import fields

import pytest

import nonlin
from nonlin.calls.arguments import Asked
from nonlin.errors import Interrupted, UserError
from nonlin.study import Store, simulated

SMALL = {"steps": 24, "seeds": 4, "learning_rates": 2, "layers": 1, "dim": 16, "heads": 2, "context": 16, "batch": 4}
ARMS = ["gelu", "swiglu", "mine=x*sigmoid(2*x)"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a <text> & more.txt"
    path.write_text("".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1500)))
    return path


@pytest.fixture(scope="module")
def study(text, tmp_path_factory):
    return nonlin.compare(text, ARMS, out=tmp_path_factory.mktemp("studies") / "one", progress=False, **SMALL)


def test_the_object_holds_the_files_numbers(study):
    written = json.loads((study.directory / "results.json").read_text())
    assert study.status == "complete" and study.winner == written["winner"]
    assert list(study.arms) == ["gelu", "swiglu", "mine"] and list(study.verdicts) == written["ranking"]
    for arm in written["arms"]:
        found = study.verdicts[arm["name"]]
        assert found.verdict == arm["verdict"] and found.bits_per_byte == arm["bits_per_byte"]
        if arm["name"] == "gelu":
            assert found.difference is None
        else:
            assert found.difference.mean == arm["difference"]["mean"] == float(found.difference)
            assert found.difference["low"] == arm["difference"]["low"] <= found.difference.high
    assert study.results["arms"][0]["judged"][0]["seed"] == study.results.arms[0].judged[0].seed == 1
    assert study.plan.hash == written["plan"]["hash"]


def test_the_command_line_goes_on_with_the_same_study(study, text):
    """The same request in the same folder: its plan is taken, and nothing runs again."""
    times = {p: p.stat().st_mtime_ns for p in (study.directory / "trials").rglob("*")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = subprocess.run([sys.executable, "-m", "nonlin", "compare", "--data", str(text), "--activations",
                           ",".join(ARMS), *options, "--out", str(study.directory), "--json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Continuing the study" in done.stderr, done.stderr
    assert {p: p.stat().st_mtime_ns for p in (study.directory / "trials").rglob("*")} == times
    found, before = json.loads(done.stdout), json.loads((study.directory / "results.json").read_text())
    assert found["arms"] == before["arms"] == study.folder.results["arms"]


def test_load_study_finds_the_same(study):
    loaded = nonlin.load_study(str(study.directory))
    assert loaded.verdicts == study.verdicts and loaded.runs() == study.runs()
    assert repr(loaded) == repr(study)


def test_a_study_whose_results_were_never_written_is_judged_from_its_runs(study, tmp_path):
    """As a killed process leaves it: the plan and finished runs alone."""
    (tmp_path / "plan.json").write_bytes((study.directory / "plan.json").read_bytes())
    (tmp_path / "trials").symlink_to(study.directory / "trials")
    loaded = nonlin.load_study(tmp_path)
    assert loaded.verdicts == study.verdicts
    (tmp_path / "trials").unlink()
    assert nonlin.load_study(tmp_path).status == "partial"
    with pytest.raises(UserError, match="must hold a study"):
        nonlin.load_study(tmp_path / "nothing")


def test_every_run_is_a_row(study):
    frame = study.to_pandas()
    judged = frame[frame.purpose == "judge"]
    assert list(judged.groupby("activation").seed.apply(list)) == [[1, 2, 3, 4]] * 3
    for name, arm in study.arms.items():
        ours = judged[judged.activation == name]
        assert list(ours.bits_per_byte) == [run.bits_per_byte for run in arm.judged]
        assert abs(ours.bits_per_byte.mean() - arm.bits_per_byte) < 1e-12
        tuned = frame[(frame.activation == name) & (frame.purpose == "tune")]
        assert sorted(tuned.config_hash) == sorted(run.config_hash for run in arm.tuning)
    assert len(frame) == len(list((study.directory / "trials").iterdir()))
    assert (frame.tokens_per_second > 0).all() and frame.steps.eq(24).all()


def test_without_pandas_the_message_says_how(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        study.to_pandas()


def test_in_a_terminal_it_is_the_table(study):
    shown = repr(study)
    for name, found in study.verdicts.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name} ")]
        # as many digits as the intervals mean
        assert found.verdict in line and any(f" {found.bits_per_byte:.{n}f} " in line for n in range(1, 7)), line
    assert study.results.advice in shown and "\x1b" not in shown


def test_in_a_notebook_it_is_the_table_and_the_curves(study):
    html = study._repr_html_()
    for name, found in study.verdicts.items():
        assert f"<td>{name}</td>" in html and f"<td>{found.verdict}</td>" in html
    svg = html[html.index("<svg"):html.index("</svg>") + 6]
    drawn = ElementTree.fromstring(svg)
    assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > 50
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "")


def test_a_model_and_its_samples(study):
    model = study.model("swiglu")
    assert not model.training and model.definition.name == "swiglu"
    assert sum(p.numel() for p in model.parameters()) == study.arms["swiglu"].parameters
    assert study.model().definition.name == study.winner
    text = study.sample("12: the", "gelu", length=5, temperature=0)
    assert text.startswith("12: the") and len(text) > len("12: the")
    with pytest.raises(UserError, match="Did you mean swiglu"):
        study.model("swigul")


def test_its_report_is_built_where_it_is_missing_and_opened(study, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    (study.directory / "report.html").unlink()
    path = study.open_report()
    assert path == study.report == study.directory / "report.html" and "swiglu" in path.read_text()
    assert opened == [path.resolve().as_uri()]


def test_resume_study_and_the_same_call_run_nothing_again(study, text):
    times = {p: p.stat().st_mtime_ns for p in (study.directory / "trials").rglob("*")}
    again = nonlin.resume_study(study.directory, progress=False)
    assert again.verdicts == study.verdicts
    assert {p: p.stat().st_mtime_ns for p in (study.directory / "trials").rglob("*")} == times
    with pytest.raises(UserError, match="another study: its steps"):
        nonlin.compare([text], ARMS, out=study.directory, progress=False, **SMALL | {"steps": 25})


def test_ctrl_c_raises_with_the_study_so_far(study, text, tmp_path, monkeypatch):
    """The listener is told of each run: here it is a person who stops the study after the second."""
    import nonlin.calls.comparison as comparison
    from nonlin.progress import Silent

    class Impatient(Silent):
        def __call__(self, event):
            if event["done"] >= 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "listener", lambda shown: Impatient())
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "plan.json").write_bytes((study.directory / "plan.json").read_bytes())
    with pytest.raises(KeyboardInterrupt) as stopped:
        nonlin.compare(text, ARMS, out=tmp_path / "study", **SMALL)
    assert isinstance(stopped.value, Interrupted)
    assert stopped.value.found.status == "interrupted" and 2 <= len(stopped.value.found.runs()) < 12
    assert "No advice yet" in repr(stopped.value.found) and "<table" in stopped.value.found._repr_html_()
    monkeypatch.setattr(comparison, "listener", lambda shown: Silent())
    whole = nonlin.resume_study(tmp_path / "study")
    assert [arm.judged for arm in whole.arms.values()] == [arm.judged for arm in study.arms.values()]


@pytest.mark.parametrize(("values", "words"), [
    ({"minutes": "ten"}, "minutes must be a number"), ({"seeds": 4.5}, "seeds must be a whole number"),
    ({"layers": True}, "layers must be a whole number"), ({"match": 3}, "match must be a text"),
    ({"activations": 3}, "activations must be a list"), ({"activations": ["gelu", 3]}, "activations must be a list"),
    ({"data": 3}, "data must be a path"), ({"activations": ["gelu", "swigul"]}, "Did you mean swiglu"),
    ({"activations": ["gelu"]}, "two or more"), ({"baseline": "relu"}, "relu"), ({"dim": 33}, "dim"),
    ({"tokenizer": 12}, "258"), ({"tokenizer": "words"}, "tokenizer"), ({"confidence": 2}, "confidence")])
def test_mistakes_are_told_before_anything_runs(text, tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        nonlin.compare(**{"data": text, "activations": ["gelu", "swiglu"], "out": tmp_path / "out", "progress": False}
                       | SMALL | values)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_numbers_of_numpy_and_definitions_are_taken(tmp_path):
    numpy = pytest.importorskip("numpy")
    from nonlin.calls.comparison import definitions_of

    values = dict.fromkeys(Asked.__dataclass_fields__) | {
        "match": "params", "tokenizer": "bytes", "activations": "gelu", "layers": numpy.int64(2), "dim": 32,
        "heads": 2, "context": 16, "batch": 4, "seeds": 4, "learning_rate": numpy.float32(0.5), "learning_rates": 2,
        "margin": 0, "confidence": 0.9}
    asked = Asked(**values)
    assert type(asked.layers) is int and type(asked.learning_rate) is float
    mine = nonlin.define("of_my_own", "x*tanh(x)")
    assert definitions_of([mine, "swish", nonlin.get("gelu")]) == [mine, nonlin.get("silu"), nonlin.get("gelu")]


def test_outside_of_a_terminal_progress_is_lines(text, tmp_path):
    """A script as a person writes it, with no guard for the main module: workers are processes of their own."""
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(f"""
        import nonlin
        study = nonlin.compare({str(text)!r}, ["gelu", "relu"], out={str(tmp_path / 'out')!r}, **{SMALL})
        print(study)
        """))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("Compare gelu, relu", "Tuning learning rates: 0/", "Judging on fresh seeds: 8/8"):
        assert words in done.stderr, done.stderr
    assert "gelu" in done.stdout and "Study in" in done.stdout and "Judging" not in done.stdout


def test_a_recipe_of_ones_own(text, tmp_path):
    """From Python and the command line by the same words: one study; in its plan, its runs and its page."""
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"weight_decay": 0.02, "optim": "adamw_torch", "seed": 7, "adam_beta2": 0.99}))
    words = {"optimizer": "muon", "schedule": "wsd", "decay": 0.5, "warmup": 4, "clip": 0.5, "precision": "bfloat16",
             "batch": "64tokens", "accumulation": 2, "recipe": file}
    small = SMALL | {"steps": 16} | words
    found = nonlin.compare(text, ["gelu", "swiglu"], out=tmp_path / "study", progress=False, **small)
    assert found.status == "complete"
    recipe = {"optimizer": "muon", "schedule": "wsd", "decay_fraction": 0.5, "warmup_steps": 4, "clip": 0.5,
              "accumulation": 2, "beta2": 0.99, "weight_decay": 0.02, "batch": 4}
    assert found.plan.training.items() >= recipe.items() and found.plan.machine["dtype"] == "bfloat16"
    for config, record in found.folder.trials().values():
        assert config["training"].items() >= recipe.items() and record["status"] == "finished"
    for said in ("Muon for the matrices", "warm-up over 4 steps", "batches of 4 sequences (64 tokens) in 2 parts",
                 "bfloat16", "seed = 7", "optim = "):
        assert said in found.plan.describe()
    page = found.report.read_text()
    assert "Muon for the matrices" in page and "seed = 7" in page
    with pytest.raises(UserError, match="another study: its training differs"):
        nonlin.compare(text, ["gelu", "swiglu"], out=found.directory, progress=False, **small | {"clip": 1.0})
    with pytest.raises(UserError, match="recipe must be the path of a file"):
        nonlin.compare(text, ["gelu", "swiglu"], progress=False, recipe=3)


def test_the_command_line_says_a_recipe_by_the_same_words(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from nonlin.calls.comparison import requested
    from nonlin.cli.compare import compare
    from nonlin.progress import Silent

    (tmp_path / "text.txt").write_text("the quick brown fox jumps over lazy dogs\n" * 3000)
    (tmp_path / "arguments.json").write_text(json.dumps({"weight_decay": 0.02}))
    words = {"optimizer": "muon", "schedule": "wsd", "decay": 0.5, "warmup": 4.0, "clip": 0.5, "precision": "bfloat16",
             "batch": "64tokens", "accumulation": 2, "recipe": tmp_path / "arguments.json", "context": 16, "steps": 20,
             "learning_rate": 0.003}
    asked = []

    def stop(**given):
        asked.append(Asked(**{one.name: given[one.name] for one in fields(Asked)}))
        raise UserError("enough")

    monkeypatch.setattr("nonlin.calls.comparison.compare", stop)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    CliRunner().invoke(compare, ["--data", str(tmp_path / "text.txt"), *options])
    CliRunner().invoke(compare, ["--data", str(tmp_path / "text.txt")])
    said, plain = (requested(one, tmp_path / str(i), Silent())[0] for i, one in enumerate(asked))
    assert said.training.items() >= {"optimizer": "muon", "schedule": "wsd", "decay_fraction": 0.5, "warmup_steps": 4,
                                     "clip": 0.5, "accumulation": 2, "weight_decay": 0.02}.items()
    assert (said.batch, said.steps, said.precision, said.learning_rate) == (4, 20, "bfloat16", 0.003)
    from nonlin.study import defaults
    assert plain.training == defaults.TRAINING and plain.batch == defaults.BATCH
    assert (plain.learning_rate, plain.precision) == (defaults.LEARNING_RATE, defaults.PRECISION)


def test_only_activations_that_have_a_model_are_proposed(tmp_path):
    Store(tmp_path / "begun").create(simulated.plan(arms=2))
    study = nonlin.load_study(tmp_path / "begun")
    name, *others = study.arms
    with pytest.raises(UserError, match=f"{name} must have a finished judged run; it has none") as none:
        study.sample(name=name)
    assert str(none.value).endswith("Continue the study.") and others
