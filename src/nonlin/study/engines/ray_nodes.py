"""The nodes of a Ray cluster: which are alive, which may be used, and the tokens that each of them needs."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError
from nonlin.study.engines import ray_tasks

_WORDS = 160  # of Ray's own about a node
_ADMIT_SECONDS = 120.0  # that a node may take to answer before it is left out


@dataclass
class Node:
    """A node that may be used: what it is, where its tokens lie, how many requests it takes and has."""

    id: str
    host: str
    resources: Mapping[str, float]
    memory_bytes: int | None
    processor: str
    dataset: str
    copied: bool
    slots: int = 1
    running: int = 0


class Nodes:
    """A cluster's nodes, ``ray`` being Ray's module, connected to it.

    ``dataset`` is the folder of the tokens here; ``copy_tokens`` sends them to nodes that see it too.
    """

    def __init__(self, ray: Any, dataset: Path, copy_tokens: bool):
        self.ray, self.dataset, self.copy_tokens = ray, dataset, copy_tokens
        self._versions: dict[str, str] = {}

    def alive(self) -> dict[str, Mapping[str, Any]]:
        """Return Ray's words on each node that is alive and has a CPU, by its id."""
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}

    def admit(self, nodes: Sequence[Mapping[str, Any]]) -> list[Node | Exception]:
        """Return each node, ready for trials, or the reason why it is not used."""
        described = (self.dataset / "dataset.json")
        text = described.read_text(encoding="utf-8") if described.exists() else ""
        answers = [(node, self.on(node["NodeID"], ray_tasks.probe, str(self.dataset), text)) for node in nodes]
        outcomes: list[Node | Exception] = []
        ready = []
        for node, answer in answers:
            name = node.get("NodeManagerHostname") or node["NodeID"][:8]
            try:
                probed = self.ray.get(answer, timeout=_ADMIT_SECONDS)
            except Exception as error:
                outcomes.append(NonlinError(f"node {name} is left out: {self._why(error)}"))
                continue
            self._versions = self._versions or probed["versions"]
            if probed["versions"] != self._versions or probed["versions"]["nonlin"] != ray_tasks.versions()["nonlin"]:
                outcomes.append(UserError(different_versions(name, probed["versions"], self._versions)))
            else:
                ready.append((node, name, probed))
        return outcomes + self._with_tokens(ready, text)

    def _why(self, error: Exception) -> str:
        """Return why a node did not answer, in a few words."""
        if isinstance(error, self.ray.exceptions.OutOfMemoryError):
            return "it ran out of memory, and Ray ended the question to it"
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return last if len(last) <= _WORDS else f"{last[:_WORDS]}…"

    def _with_tokens(self, ready: Sequence[tuple[Mapping[str, Any], str, Mapping[str, Any]]], text: str
                     ) -> list[Node | Exception]:
        copied = [node["NodeID"] for node, _, probed in ready if text and (self.copy_tokens or not probed["shared"])]
        folders = self._send_tokens(copied, text) if copied else {}
        outcomes: list[Node | Exception] = []
        for node, name, probed in ready:
            folder = folders.get(node["NodeID"], str(self.dataset))
            if isinstance(folder, Exception):
                outcomes.append(NonlinError(f"node {name} is left out, since the tokens do not reach it: {folder}"))
            else:
                outcomes.append(Node(node["NodeID"], name, node["Resources"], probed["memory_bytes"],
                                      probed["processor"], folder, node["NodeID"] in folders))
        return outcomes

    def _send_tokens(self, nodes: Sequence[str], text: str) -> dict[str, str | Exception]:
        """Send the tokens, part by part: each is put into the object store once, for any number of nodes."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        folders: dict[str, str | Exception] = {}
        wanting = []
        for node in nodes:  # several nodes may be one machine: each has a folder of its own
            with self._keeping(folders, node):
                folders[node], there = self.ray.get(self.on(node, ray_tasks.begin_tokens, f"{digest}-{node[:12]}"))
                if not there:
                    wanting.append(node)
        for path in sorted(p for p in self.dataset.iterdir() if p.is_file()) if wanting else ():
            with path.open("rb") as file:
                offset = 0
                while chunk := file.read(ray_tasks.CHUNK_BYTES):
                    part = self.ray.put(chunk)
                    sent = [(node, self.on(node, ray_tasks.write_tokens, folders[node], path.name, offset, part))
                            for node in wanting if isinstance(folders[node], str)]
                    for node, answer in sent:
                        with self._keeping(folders, node):
                            self.ray.get(answer)
                    offset += len(chunk)
                    del part, sent
        for node in wanting:
            if isinstance(folders[node], str):
                with self._keeping(folders, node):
                    self.ray.get(self.on(node, ray_tasks.end_tokens, folders[node]))
        return folders

    @contextlib.contextmanager
    def _keeping(self, folders: dict[str, str | Exception], node: str) -> Any:
        try:
            yield
        except Exception as error:
            folders[node] = error

    def on(self, node: str, function: Any, *arguments: Any) -> Any:
        """Return a small task on a node, beside those that take its cores."""
        return self.ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=self.pin(node)).remote(
            *arguments)

    def pin(self, node: str) -> Any:
        """Return Ray's way to say that a task runs on this node and on no other."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def different_versions(node: str, versions: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return the sentence for a node whose versions are not those of the others, or of this process."""
    ours = {**others, "nonlin": ray_tasks.versions()["nonlin"]}
    differing = [f"{name} {version} where {'this process has' if name == 'nonlin' else 'another has'} {ours[name]}"
                 for name, version in versions.items() if version != ours.get(name)]
    return f"node {node} has {' and '.join(differing)}: versions must be equal, since last bits differ between them"
