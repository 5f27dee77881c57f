"""Single questions to an engine's workers: what the machine is, how fast it trains."""

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from nonlin.errors import NonlinError
from nonlin.study.engines.protocol import Engine, Handle, Request, error_of, first_slot

_TRIES = 3
_LONGEST = 60.0  # seconds of measuring after which no other round begins


def ask_all(engine: Engine, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the answers to requests, in their order; as many at once as the engine takes.

    Raises UserError or NonlinError with the message of the first that fails.
    """
    answers: dict[int, Any] = {}
    tries = dict.fromkeys(range(len(bodies)), 0)
    waiting, running = deque(tries), dict[Handle, int]()
    try:
        while len(answers) < len(bodies):
            while waiting and (slot := first_slot(engine.free())):
                number = waiting.popleft()
                tries[number] += 1
                running[engine.start(Request(bodies[number], f"question-{number}", tries[number]), slot)] = number
            for event in engine.poll(1.0):
                if event.handle not in running or event.kind == "progress":
                    continue
                number = running.pop(event.handle)
                if event.kind == "done":
                    answers[number] = event.value
                elif event.kind == "error":
                    raise error_of(event.value)
                elif tries[number] < _TRIES:
                    waiting.append(number)
                else:
                    raise NonlinError(f"{event.value['reason']}, {_TRIES} times")
    finally:
        for handle in running:
            engine.stop(handle)
    return [answers[number] for number in range(len(bodies))]


def ask(engine: Engine, body: Mapping[str, Any]) -> Any:
    """Return the answer to one request."""
    return ask_all(engine, [body])[0]


def measure(engine: Engine, configs: Mapping[str, Mapping[str, Any]], seconds: float = 1.5, rounds: int = 1
            ) -> dict[str, Any]:
    """Return each arm's speed and memory while the whole engine is busy.

    {"tokens_per_second", "seconds_overhead", "peak_memory_bytes"} by arm, as :func:`nonlin.study.make_plan` takes it.
    The arms take turns in so many ``rounds``, of so many ``seconds`` each; a speed is the median of its rounds. Speeds
    decide the verdict where arms train for equal times, and other work on the machine comes and goes. No round begins
    after ``_LONGEST`` seconds: each builds every model again, which takes long for large ones.
    """
    found: dict[str, list[Any]] = {name: [] for name in configs}
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > _LONGEST:
            break
        requests = [{"do": "measure", "config": config, "seconds": seconds, "evaluate": number == 0}
                    for config in configs.values()]
        # Filled up to a multiple of the workers: the last arm, alone, would be measured on an idle machine.
        extra = [requests[i % len(requests)] for i in range(-len(requests) % engine.total())]
        for name, answer in zip(configs, ask_all(engine, [*requests, *extra]), strict=False):
            found[name].append(answer)
    return {name: answers[0] | {
        "tokens_per_second": statistics.median(answer["tokens_per_second"] for answer in answers),
        "peak_memory_bytes": max(answer.get("peak_memory_bytes", 0) for answer in answers)}
        for name, answers in found.items()}
