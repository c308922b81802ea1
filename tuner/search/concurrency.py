"""How many trials may run at a time. The number follows the cluster as nodes come and go."""

import time
from collections.abc import Callable, Sequence

from tuner.cluster.resources import Node, Plan, slots_on

# Seconds between two queries of the cluster: a new node needs a minute to start, and each query goes to Ray's head.
CHECK_SECONDS = 2.0


class Concurrency:
    """The number of trials at a time: as many as the cluster's nodes hold, or a fixed number."""

    def __init__(
        self,
        layout: Plan,
        limit: int | None,
        nodes: Callable[[], Sequence[Node]],
        print_line: Callable[[str], None],
    ) -> None:
        """Start with the plan of the search.

        Args:
            layout: the plan; what a worker holds does not change with the nodes.
            limit: the number of trials at a time that was asked for; None: as many as the cluster holds.
            nodes: returns the nodes of the cluster, including those that its autoscaler may start.
            print_line: prints a sentence for the user.
        """
        self._layout, self._limit, self._nodes, self._print_line = layout, limit, nodes, print_line
        self._slots = layout.slots
        self._checked = time.monotonic()

    def __call__(self) -> int:
        """How many trials may run at a time; at least 1: a search waits for nodes."""
        return self._limit or max(1, self._current_slots())

    def _current_slots(self) -> int:
        if time.monotonic() - self._checked >= CHECK_SECONDS:
            slots = slots_on(self._nodes(), self._layout.resources)
            if slots != self._slots:
                now = f"{slots} trial{'s' if slots > 1 else ''} at a time" if slots else "no trial; waiting for nodes"
                self._print_line(f"the cluster has changed: it now holds {now}")
            self._slots, self._checked = slots, time.monotonic()
        return self._slots
