"""When a training step ends: the one definition of it, for any number of optimizers.

An optimizer that holds parameters of the model ends a step when it steps. Those that step on the gradients of one
backward pass share a step, which the first of them ends. An optimizer begins another one where it steps again, or
where a later backward pass made its gradients. Those that step inside a backward pass end a step with it.
"""

# torch has no public name for the number of a backward pass, nor types for its engine.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.graph import get_gradient_edge
from torch.optim.optimizer import register_optimizer_step_post_hook

# Calls on the stack: of the engine, and of a function's backward.
_ENGINE: Any = torch.autograd.graph._engine_run_backward.__code__
_BACKWARD: Any = torch.autograd.function.BackwardCFunction.apply.__code__


def in_backward() -> bool:
    """Whether autograd is running backward: a forward then is the recomputation of activation checkpointing."""
    return torch._C._current_graph_task_id() != -1


def _function_around() -> Any:
    """Return the graph's node whose backward runs this pass inside another, as reentrant checkpointing does; or None.
    """
    frame, engine = sys._getframe(1), False
    while frame is not None:
        if engine and frame.f_code is _BACKWARD:
            return frame.f_locals["self"]
        engine = engine or frame.f_code is _ENGINE
        frame = frame.f_back
    return None


class _Gradients:
    """Which parameters got a gradient from a backward pass since :meth:`wait`.

    A gradient that changed does not tell: it may have been clipped or unscaled in place. Other networks' backward
    passes do not either. So the node of autograd's graph that adds to a parameter's gradient is asked. A hook there is
    not on the model: no copy or pickle of it has it, and no compiled code sees it.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Any] = {}  # by parameter: its node, which lives no longer than something holds it
        self._handles: dict[int, Any] = {}
        self._made: set[int] = set()
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._telling: set[int] = set()  # parameters whose nodes ever told; FSDP2 puts gradients there by itself

    def wait(self, parameters: Iterable[nn.Parameter], known: Iterable[nn.Parameter] = ()) -> None:
        """Begin anew to wait for gradients of ``parameters``; those that ``known`` ones have now are old."""
        self.stop()
        self._made = set()
        self._known = {id(p): (weakref.ref(p.grad), p.grad._version) for p in known if p.grad is not None}
        for p in parameters:
            if p.requires_grad and p.is_leaf and not p.is_inference():
                # Some kinds have no view, and nothing has a gradient in inference mode.
                with contextlib.suppress(RuntimeError, NotImplementedError, ValueError, AttributeError):
                    self._wait_for(id(p), get_gradient_edge(p).node)

    def _wait_for(self, key: int, node: Any) -> None:
        def came(_: Any) -> None:
            self._telling.add(key)
            self._made.add(key)
            if (handle := self._handles.pop(key, None)) is not None:  # once is enough
                handle.remove()

        self._waiting[key], self._handles[key] = node, node.register_prehook(came)

    def stop(self) -> None:
        """Wait no longer."""
        for handle in self._handles.values():
            handle.remove()
        self._waiting, self._handles = {}, {}

    def new(self, parameters: list[nn.Parameter]) -> bool:
        """Whether a backward pass made, or added to, any of these parameters' gradients since."""
        waited = [p for p in parameters if id(p) in self._waiting]
        return any(map(self._is_new, waited or parameters))

    def _is_new(self, p: nn.Parameter) -> bool:
        if p.grad is None or (id(p) in self._waiting and id(p) in self._telling):
            return id(p) in self._made
        known, version = self._known.get(id(p), (None, -1))
        # A tensor that changed may have been clipped, but not one of a parameter that nothing waits for.
        return known is None or known() is not p.grad or (id(p) not in self._waiting and version != p.grad._version)


class Steps:
    """Calls ``ended`` at the end of each training step, between :meth:`start` and :meth:`stop`."""

    def __init__(self, model: nn.Module, ended: Callable[[], None]):
        self._model, self._ended = model, ended
        self._hook: Any = None
        self._gradients = _Gradients()
        self._parameters: set[int] = set()  # the model's, when they were last looked at
        self._together: dict[int, set[int]] = {}  # by optimizer of the step that ended last: its parameters
        self._pass = -1  # the last backward pass that optimizers stepped in
        self._within = -1  # the last such pass inside another one

    def start(self) -> None:
        """Begin to look at optimizers."""
        self._gradients.wait(self._look())
        # A compiled step calls it between its graphs. torch.compiler.disable would load the compiler now.
        self._hook = register_optimizer_step_post_hook(_disable_dynamo(lambda *given: self._stepped(*given)))

    def stop(self) -> None:
        """End it."""
        self._hook.remove()
        self._gradients.stop()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if any(id(p) not in self._parameters for p in held):  # FSDP2 has others during a pass
            self._look()
        ours = [p for p in held if id(p) in self._parameters]
        if not ours:
            return
        if in_backward():
            self._end_with_pass(optimizer, ours)
        elif self._together and id(optimizer) not in self._together and not self._gradients.new(ours):
            self._joins(optimizer, ours)
        else:
            self._together = {}
            self._joins(optimizer, ours)
            self._end()

    def _look(self) -> list[nn.Parameter]:
        """Return the model's parameters as they are now; a model of many may have as many optimizers."""
        parameters = list(self._model.parameters())
        self._parameters = {id(p) for p in parameters}
        return parameters

    def _joins(self, optimizer: torch.optim.Optimizer, ours: list[nn.Parameter]) -> None:
        self._together[id(optimizer)] = {id(p) for p in ours}

    def _end(self) -> None:
        """End a step, and wait for the gradients of what the optimizers that ended it do not hold."""
        held = set[int]().union(*self._together.values())
        parameters = self._look()
        self._gradients.wait([p for p in parameters if id(p) not in held], parameters)
        self._ended()

    def _end_with_pass(self, optimizer: torch.optim.Optimizer, ours: list[nn.Parameter]) -> None:
        """End the step with the outermost backward pass: inside another one, its next node is waited for."""
        if (number := torch._C._current_graph_task_id()) in (self._pass, self._within):
            self._joins(optimizer, ours)
            return
        around = _function_around()
        following = [node for node, _ in around.next_functions if node is not None] if around is not None else []
        if not following:
            self._pass, self._together = number, {}
            self._joins(optimizer, ours)
            torch.autograd.Variable._execution_engine.queue_callback(self._pass_ended)
            return
        self._within = number
        waiting = contextlib.ExitStack()

        def outside(*_: Any) -> None:
            waiting.close()
            self._end_with_pass(optimizer, ours)

        for node in following:
            waiting.callback(node.register_prehook(outside).remove)

    def _pass_ended(self) -> None:
        self._within = -1
        self._end()
