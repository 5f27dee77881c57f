"""``nonlin.check``: what is wrong inside a model, as an object. The command line is a thin layer over it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlin.errors import UserError, not_empty, rule
from nonlin.health.records import BlockRecord, Finding, HealthRecord

if TYPE_CHECKING:
    import torch

_DEVICE = re.compile(r"[a-z]+(:\d+)?\Z")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, repr=False)
class Checkup:
    """The check of a model, block by block, with its findings and their remedies.

    Shown in a terminal or a notebook, it is the table of blocks and the findings. ``values`` are those that
    ``nonlin check --json`` prints.
    """

    values: Mapping[str, Any]

    @cached_property
    def record(self) -> HealthRecord:
        """The values, typed."""
        return HealthRecord.from_dict(self.values, "the check")

    @property
    def findings(self) -> list[Finding]:
        """The faults and notable facts, the gravest first."""
        return self.record.findings

    @property
    def blocks(self) -> list[BlockRecord]:
        """The measures of every feed-forward block, in the model's order."""
        return self.record.blocks

    @property
    def serious(self) -> bool:
        """Whether a finding is serious."""
        return any(finding.grade == "serious" for finding in self.findings)

    def write_page(self, path: str | Path | None = None) -> Path:
        """Write the page, one HTML file that needs nothing else, by default runs/check-MODEL.html; return its path."""
        from nonlin.report import health as pages

        not_empty("write_page", path=path)
        return pages.write(self.values, Path("runs") / f"check-{self._name}.html" if path is None else path)

    def open_page(self, path: str | Path | None = None) -> Path:
        """Write the page, open it in the browser, and return its path."""
        import webbrowser

        written = self.write_page(path)
        webbrowser.open(written.resolve().as_uri())
        return written

    @property
    def _name(self) -> str:
        last = Path(self.record.source).resolve().name.removesuffix(".gguf")
        return re.sub(r"[^A-Za-z0-9.-]+", "-", last) or "model"

    def __repr__(self) -> str:
        from nonlin.report import terminal

        return terminal.health_text(self.values)

    def _repr_html_(self) -> str:
        from nonlin.report import health as pages
        from nonlin.report.notebook import table

        lines = "".join(f"<li><b>{f.grade}</b> {escape(f.text)} {escape(f.action)}</li>" for f in self.findings)
        return f"<p>{escape(pages.summary(self.values))}</p>{table(*pages.blocks(self.values))}<ul>{lines}</ul>"


def _check_call(model: Any, text: str | Path | None, tokenizer: Any, tokens: int, context: int, dtype: Any,
                device: str | None, trust: bool) -> None:
    """Raise UserError for what can be seen to be wrong before torch is loaded."""
    from nonlin.patching.location import located

    not_empty("check", model=model, text=text, tokenizer=tokenizer, dtype=dtype, device=device)
    for name, value in (("tokens", tokens), ("context", context)):
        if value < 2:
            raise UserError(rule("check", name, "be at least 2, since a loss needs a next token", value,
                                 "Pass a larger number."))
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise UserError(rule("check", "dtype", f"be one of {', '.join(_DTYPES)}", dtype, "Choose one."))
    if isinstance(device, str) and not _DEVICE.match(device):
        raise UserError(rule("check", "device", "be a device's name, such as cpu, cuda or cuda:1", device,
                             "Leave it out to run on the CPU."))
    if text is not None and not Path(text).is_file():
        raise UserError(rule("check", "--text", "be a file that exists", str(text), "Check the path."))
    if isinstance(model, str | Path):
        located(Path(model), trust, "check")


def check(model: "str | Path | torch.nn.Module", text: str | Path | None = None, *, tokenizer: Any = None,
          tokens: int = 4096, context: int = 512, gradients: bool = False, dtype: "str | torch.dtype" = "float32",
          device: str | None = None, trust_remote_code: bool = False, progress: bool = True) -> Checkup:
    """Run a model on text and return what is found in it; the model is left as it was.

    ``model``: a module, a Hugging Face folder, a GGUF file, or a folder that ``nonlin compare`` wrote. Nothing is
    fetched and nothing unpickled; ``trust_remote_code`` runs code that the folder brings along. ``text``: a file of
    text (.jsonl, .parquet and compressed ones too), or of token ids (.json, .npy). Without it, the text of Python's
    standard library is taken. ``tokens`` are run in sequences of ``context``; ``gradients`` runs one batch backward
    too. ``dtype`` and ``device`` are those to load a folder with. ``progress`` shows a bar in a notebook and on a
    terminal.

    Raises UserError where the model cannot be loaded or examined, or the text cannot be read.

    >>> import torch
    >>> from nonlin.functions import get
    >>> from nonlin.model import LanguageModel, ModelConfig
    >>> sizes = ModelConfig(layers=1, dim=16, heads=2, kv_heads=2, context=32, hidden=40)
    >>> small = LanguageModel(sizes, get("swiglu"))
    >>> found = check(small, tokens=64, context=32, progress=False)
    >>> found.blocks[0].activation.computed, found.serious
    ('swiglu', False)
    """
    from nonlin.progress import batches

    _check_call(model, text, tokenizer, tokens, context, dtype, device, trust_remote_code)
    with batches("Loading the model", "Running text", progress) as told:
        import torch

        from nonlin import health

        if not (isinstance(dtype, torch.dtype) or dtype in _DTYPES):
            raise UserError(rule("check", "dtype", f"be one of {', '.join(_DTYPES)}", dtype, "Choose one."))
        kind: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return Checkup(health.check(model, text, tokenizer=tokenizer, tokens=tokens, context=context,
                                    gradients=gradients, dtype=kind, device=device,
                                    trust_remote_code=trust_remote_code, progress=told))
