"""TensorBoard: a folder of events a trial, in a folder per activation; written without torch."""

# Names that protobuf makes when it is imported:
# pyright: reportAttributeAccessIssue=false
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportMissingImports]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportMissingImports]
from tensorboard.compat.proto.types_pb2 import DT_STRING  # pyright: ignore[reportMissingImports]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

from nonlin.tracking.records import TrackedRun, Verdicts


def open_tracker(study: str, directory: Path) -> "TensorboardTracker":
    """Return the tracker, whose events lie in the study's folder."""
    return TensorboardTracker(directory / "tracking" / "tensorboard")


class TensorboardTracker:
    """Events in a folder: ``tensorboard --logdir`` shows them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, run: TrackedRun) -> None:
        """Log a finished run: its curves, its outcome at the last step, its configuration as text."""
        writer = EventFileWriter(str(self.folder / run.arm / f"{run.purpose}-{run.key}"))
        try:
            for step, values in run.curve:
                _add(writer, step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
            last = run.curve[-1][0] if run.curve else 0
            _add(writer, last, [Summary.Value(tag=f"outcome/{name}", simple_value=value)
                                for name, value in run.outcome.items()])
            rows = [[name, str(value)] for name, value in run.config.items()]
            _add(writer, 0, [_text("configuration", _markdown(["name", run.name], rows))])
        finally:
            writer.close()

    def verdicts(self, verdicts: Verdicts) -> None:
        """Log the table and the advice as text, the numbers as scalars."""
        writer = EventFileWriter(str(self.folder / f"verdicts-{verdicts.key}"))
        try:
            _add(writer, 0, [_text("verdicts", f"{_markdown(verdicts.header, verdicts.rows)}\n\n{verdicts.advice}"),
                             *(Summary.Value(tag=name, simple_value=value)
                               for name, value in verdicts.numbers.items())])
        finally:
            writer.close()

    def close(self) -> str:
        """Return where the events lie."""
        return f"{self.folder} (tensorboard --logdir {self.folder})"


def _add(writer: EventFileWriter, step: int, values: list[Summary.Value]) -> None:
    writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))


def _text(tag: str, text: str) -> Summary.Value:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=f"{tag}/text_summary", metadata=metadata,
                         tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
