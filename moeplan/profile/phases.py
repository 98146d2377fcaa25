"""Named scopes of the measured layer: each bears the name of a row of `MoE.rows`.

The join of predicted and measured is by these names, so a scope without a row, and a row without
a scope, is an error.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch

__all__ = ["PhaseHook", "Phases", "Stage"]

Stage: TypeAlias = Literal["forward", "backward"]
PhaseHook: TypeAlias = Callable[[str, Stage], AbstractContextManager[Any]]
"""Called with a phase's name and stage; the context manager it returns is open while it runs.

In the backward pass a phase is opened once for each of its autograd nodes, on the thread that runs
them; what the engine does between nodes (adding gradients up) belongs to no phase.
"""


class Phases:
    """The scopes of one forward pass, and of the backward pass that follows it.

    names: every phase that must run. hook: told of each scope; without one, a scope costs nothing
    unless a profiler is recording, which then sees it by its name.
    """

    def __init__(self, names: Iterable[str], hook: PhaseHook | None = None) -> None:
        self.names = frozenset(names)
        self._hook = hook
        self._ran: set[str] = set()
        self._starts: list[int] = []
        self._spans: list[tuple[int, str]] = []  # sequence number at the end, phase

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open the scope of a phase. Raises ValueError for a name without a row."""
        if name not in self.names:
            raise ValueError(f"phase {name!r} has no row in MoE.rows: {sorted(self.names)}")
        self._ran.add(name)
        start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        with _recorded(name), self._open(name, "forward"):
            yield
        if self._hook is not None:
            self._starts.append(start)
            self._spans.append((torch.autograd._get_sequence_nr(), name))  # type: ignore[attr-defined]

    def finish(self, output: torch.Tensor) -> None:
        """Check that every row had its scope, and tell the hook of the backward pass as it runs."""
        if self._ran != self.names:
            missing = sorted(self.names - self._ran)
            raise ValueError(f"no phase ran for the rows {missing} of MoE.rows")
        if self._hook is not None and output.grad_fn is not None:
            self._watch(output.grad_fn)

    def _open(self, name: str, stage: Stage) -> AbstractContextManager[Any]:
        return nullcontext() if self._hook is None else self._hook(name, stage)

    def _watch(self, root: torch.autograd.graph.Node) -> None:
        """Open a phase's backward scope around each node that its forward made.

        Autograd numbers the nodes of a thread in order, so a node belongs to the phase during
        which its number was given; the inputs' own graph has smaller numbers and is not entered.
        """
        seen, stack = {root}, [root]
        while stack:
            node = stack.pop()
            name = self._owner(node)
            if name is not None:
                self._surround(node, name)
            for parent, _ in node.next_functions:
                if parent is not None and parent not in seen and self._inside(parent):
                    seen.add(parent)
                    stack.append(parent)

    def _inside(self, node: torch.autograd.graph.Node) -> bool:
        number = node._sequence_nr()
        return self._starts[0] <= number < self._spans[-1][0]  # leaves have the largest number

    def _owner(self, node: torch.autograd.graph.Node) -> str | None:
        number = node._sequence_nr()
        place = bisect_right(self._starts, number) - 1
        # several phases start at one number where earlier ones made no node
        while place >= 0 and not self._starts[place] <= number < self._spans[place][0]:
            place -= 1
        return self._spans[place][1] if place >= 0 else None

    def _surround(self, node: torch.autograd.graph.Node, name: str) -> None:
        opened: list[AbstractContextManager[Any]] = []

        def enter(_grads: Any) -> None:
            scope = self._open(name, "backward")
            scope.__enter__()
            opened.append(scope)

        def leave(_inputs: Any, _outputs: Any) -> None:
            opened.pop().__exit__(None, None, None)

        node.register_prehook(enter)
        node.register_hook(leave)


def _recorded(name: str) -> AbstractContextManager[Any]:
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return torch.profiler.record_function(f"moeplan::{name}")
    return nullcontext()
