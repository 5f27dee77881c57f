"""A study as an object: what ``nonlin.compare`` and ``nonlin.load_study`` return."""

import csv
import io
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlin.errors import UserError, not_empty, rule, unknown_name
from nonlin.files import must_be_page, write_atomically, writing
from nonlin.records import Record
from nonlin.study import Plan, ProcessEngine, StudyFolder, defaults, load
from nonlin.study.across import across
from nonlin.study.engines import EngineChoice, ask
from nonlin.study.records import Across, ArmResult, ArmVerdict, PairVerdict, Results
from nonlin.subject.vouching import must_be_vouched

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingTypeStubs]

    from nonlin.functions import Definition
    from nonlin.model import LanguageModel


class Run(Record, frozen=True, kw_only=True):
    """One finished run of a study: its arm, seed and learning rate, and its measures.

    ``purpose`` is "tune" or "judge"; ``bits_per_byte`` is None where it diverged (``status`` says so);
    ``config_hash`` names its folder under trials/.
    """

    activation: str
    purpose: str
    learning_rate: float
    seed: int
    status: str
    bits_per_byte: float | None
    initial_bits_per_byte: float | None
    best_bits_per_byte: float | None
    spike_score: float | None
    dead_share: float | None
    sparsity: float | None
    steps: int
    hidden: int
    parameters: int | None
    flops_per_token: float | None
    tokens_per_second: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    config_hash: str


@dataclass(frozen=True, repr=False)
class Study:
    """A comparison of activations: its verdicts, its runs, its models, its page.

    Shown in a terminal, it is the table of verdicts; in a notebook, the table and the curves. It reads the study's
    folder and changes nothing there but the page. ``made`` says what the call that made this object wrote beside
    the results, or why it could not.
    """

    folder: StudyFolder
    made: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def directory(self) -> Path:
        """The study's folder."""
        return self.folder.directory

    @property
    def plan(self) -> Plan:
        """The request, the runs and the rule, fixed before the first run."""
        return self.folder.plan

    @cached_property
    def results(self) -> Results:
        """The values of results.json, typed."""
        return Results.from_dict(self.folder.results, str(self.directory / "results.json"))

    @property
    def status(self) -> str:
        """Return "complete", "interrupted", or "partial" where runs are missing."""
        return self.results.status

    @property
    def arms(self) -> dict[str, ArmResult]:
        """All that was found of each activation, by its name, in the plan's order."""
        return {arm.name: arm for arm in self.results.arms}

    @property
    def verdicts(self) -> dict[str, ArmVerdict]:
        """Each activation's verdict and its difference to the baseline, by its name, the best first."""
        arms, names = self.arms, ArmVerdict.__struct_fields__
        return {name: ArmVerdict(**{key: getattr(arms[name], key) for key in names})
                for name in self.results.ranking}

    @property
    def winner(self) -> str:
        """The activation to use by these verdicts: the best of those found better, else the baseline."""
        return self.results.winner

    def runs(self) -> list[Run]:
        """Return every finished run, arm by arm in the plan's order; tuning runs first, then judged ones."""
        order = {arm["name"]: i for i, arm in enumerate(self.plan.arms)}
        # By the runs' hashes: arms may share an activation, as an A/A study's do. Results may not know a run yet.
        arm_of = {run["config_hash"]: arm["name"] for arm in self.folder.results["arms"]
                  for run in (*arm["tuning"], *arm["judged"])}
        named = [(arm_of.get(key, config["activation"]["name"]), key, config, record)
                 for key, (config, record) in self.folder.trials().items()]
        found = [_run(key, arm, config, record) for arm, key, config, record in named if arm in order]
        return sorted(found, key=lambda run: (order[run.activation], run.purpose != "tune", run.learning_rate,
                                              run.seed))

    def to_pandas(self) -> "pandas.DataFrame":
        """Return one row per run, every seed, tuning and judged; the columns are those of :class:`Run`.

        Needs pandas: ``pip install nonlin[pandas]``.
        """
        try:
            import pandas  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise UserError("Study.to_pandas: pandas must be installed; it is not. pip install pandas, or read "
                            "Study.runs(), which needs nothing.") from error
        return pandas.DataFrame([run.as_dict() for run in self.runs()], columns=list(Run.__struct_fields__))

    def write_runs(self) -> Path:
        """Write runs.csv in the study's folder, the table of :meth:`to_pandas`; return its path."""
        path = self.directory / "runs.csv"
        buffer = io.StringIO()
        rows = csv.writer(buffer, lineterminator="\n")
        rows.writerow(Run.__struct_fields__)
        rows.writerows(run.as_dict().values() for run in self.runs())
        with writing(self.directory):
            write_atomically(path, buffer.getvalue())
        return path

    def to_latex(self) -> str:
        """Return the verdicts as a table for LaTeX (package booktabs), the best first, the rule in its caption."""
        from nonlin.report import paper

        return paper.table(self.folder.results or {})

    def write_paper(self, inches: float = 3.25) -> list[Path]:
        """Write paper/ in the study's folder: the table for LaTeX and the figures as PDF; return their paths.

        ``inches`` is the width of a column; drawings of two panels are as wide as a page of two columns.
        """
        low, high = defaults.COLUMN_INCHES
        if not low <= inches <= high:
            raise UserError(rule("write_paper", "inches", f"be from {low} to {high}", inches, "Try 3.25."))
        from nonlin.report import paper

        return paper.write(self.folder, inches)

    def best_trial(self, name: str) -> str:
        """Return the hash of an arm's judged run of least loss; UserError where it has none."""
        if name not in self.arms:
            raise unknown_name("activation of this study", name, self.arms)
        key = best_trial(self.folder.results, name)
        if key is None:
            damaged = "".join(f" {note}" for note in self.folder.notes)
            others = " or ".join(arm for arm in self.arms if best_trial(self.folder.results, arm))
            raise UserError(f"{self.directory}: {name} must have a finished judged run; it has none.{damaged} "
                            f"Continue the study{f', or take {others}' if others else ''}.")
        return key

    def _trial(self, name: str | None) -> Path:
        """Return the folder of the run whose model is wanted; UserError where to build it runs code of others."""
        key = self.best_trial(self.winner if name is None else name)
        config, _, _ = self.folder.trial(key)
        must_be_vouched(config["model"].get("own"), "load_study", self.directory)
        return self.directory / "trials" / key

    def extend(self, *, seeds: int | None = None, activations: "str | Sequence[str | Definition] | None" = None,
               minutes: float | None = None, engine: str | EngineChoice = "processes", workers: int | None = None,
               progress: bool = True) -> "Study":
        """Add judged seeds or activations, run what is missing, and return the study: :func:`nonlin.extend_study`."""
        import nonlin

        return nonlin.extend_study(self.directory, seeds=seeds, activations=activations, minutes=minutes,
                                   engine=engine, workers=workers, progress=progress)

    @property
    def pairs(self) -> list[PairVerdict]:
        """How the activations found better compare with each other."""
        return self.results.pairs

    def model(self, name: str | None = None) -> "LanguageModel":
        """Return the trained model of an activation's best judged run, on the CPU; the winner's without a name.

        In a study inside a model of your own it is a :class:`nonlin.subject.OwnModel`; its ``inner`` is your model.
        """
        from nonlin.training import load_trained

        return load_trained(self._trial(name))

    def save_model(self, folder: str | Path, name: str | None = None) -> dict[str, str]:
        """Save the model of an activation's best judged run to a folder, its tokenizer beside it; the winner's without
        a name.

        Return {"format", "architecture", "note"}: a Hugging Face checkpoint where transformers can express the model.
        Else it is nonlin's own form, which :func:`nonlin.load` opens; the note has the reason.
        """
        not_empty("save_model", folder=folder, name=name)
        trial = self._trial(name)
        with ProcessEngine(self.directory / "data", 1) as engine:
            return ask(engine, {"do": "export", "trial": str(trial), "out": str(Path(folder).absolute())})

    def sample(self, prompt: str = "", name: str | None = None, *, length: int = 200, temperature: float = 0.8,
               seed: int = 0) -> str:
        """Return ``prompt`` continued by ``length`` tokens of an activation's model, the winner's without a name.

        A ``temperature`` of 0 always takes the likeliest token.
        """
        trial = self._trial(name)
        with ProcessEngine(self.directory / "data", 1) as engine:
            return ask(engine, {"do": "sample", "trial": str(trial), "prompt": prompt, "length": length,
                                "temperature": temperature, "seed": seed})

    @property
    def report(self) -> Path:
        """The study's page, built where it is missing: one HTML file that needs nothing else."""
        from nonlin.report import build

        path = self.directory / "report.html"
        return path if path.exists() else build(self.folder)

    def open_report(self) -> Path:
        """Open the page in the browser, and return its path."""
        path = self.report
        webbrowser.open(path.resolve().as_uri())
        return path

    def __repr__(self) -> str:
        from nonlin.report import terminal

        return f"{terminal.text(self.folder.results, str(self.directory))}\nStudy in {self.directory} ({self.status})"

    def _repr_html_(self) -> str:
        from nonlin.report import notebook

        return notebook.html(self.folder)


def load_study(directory: str | Path) -> Study:
    """Return the study that lies in a folder; UserError where there is none.

    One that runs, or was stopped, is judged as far as its runs go; its status is "partial" or "interrupted".
    """
    not_empty("load_study", directory=directory)
    return Study(load(directory))


def compare_studies(directories: Sequence[str | Path], *, baseline: str | None = None,
                    out: str | Path | None = None) -> Across:
    """Return what several studies say together: what agrees, what turned, what differed in their set-ups.

    Studies may differ in size, text, recipe or machine. Differences are to ``baseline``, or to the first study's; a
    study with another baseline is judged anew against it, and a note says so. ``out`` is the file of a page, written
    where it is given. Raises UserError for fewer than two studies, or one that does not have the baseline.

    >>> from nonlin.study import Store, simulated
    >>> folders = [getfixture("tmp_path") / name for name in ("small", "large")]
    >>> for folder in folders:
    ...     Store(folder).create(simulated.plan(arms=2))
    >>> found = compare_studies(folders)
    >>> found.activations[0].outcome, found.differing
    ('open', {})
    """
    not_empty("compare_studies", directories=directories, baseline=baseline, out=out)
    if out is not None:
        must_be_page("compare_studies", "out", out)
    found = across([load(directory) for directory in directories], baseline)
    if out is not None:
        from nonlin.report.across import write

        write(found, out)
    return found


def best_trial(results: Mapping[str, Any], arm: str) -> str | None:
    """Return the hash of an arm's judged run of least loss; None where all diverged."""
    runs = next(a for a in results["arms"] if a["name"] == arm)["judged"]
    finished = [run for run in runs if run["bits_per_byte"] is not None]
    return min(finished, key=lambda run: run["bits_per_byte"])["config_hash"] if finished else None


def _run(key: str, arm: str, config: Mapping[str, Any], record: Mapping[str, Any]) -> Run:
    training = config["training"]
    known = {"activation": arm, "purpose": config["purpose"], "seed": config["seed"],
             "learning_rate": training["learning_rate"], "steps": training["steps"], "config_hash": key,
             "hidden": config["model"]["hidden"]}
    measured = {**record, **record.get("timing", {}), **known}
    return Run.from_dict({name: measured.get(name) for name in Run.__struct_fields__}, f"the run {key}")
