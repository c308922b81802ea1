"""How many trials may run at a time: it follows the cluster as nodes come and go."""

import time
from collections.abc import Callable, Sequence

from tuner.cluster.resources import Node, Plan, slots_on

# Seconds between two looks at the cluster: a new node takes a minute to come, and each look asks Ray's head.
LOOK_SECONDS = 2.0


class Room:
    """The number of trials at a time, by the cluster's nodes or by a fixed bound."""

    def __init__(
        self,
        layout: Plan,
        most: int | None,
        overlap: bool,
        nodes: Callable[[], Sequence[Node]],
        tell: Callable[[str], None],
    ) -> None:
        """Start with what was planned.

        Args:
            layout: the plan of the search; what a worker holds does not change with the nodes.
            most: the bound that was asked for; None: as many as the cluster holds.
            overlap: whether one trial more than there are slots starts its processes, and waits for a slot.
            nodes: of the cluster, those that its autoscaler may start among them.
            tell: says a sentence to the person.
        """
        self._layout, self._most, self._nodes, self._tell = layout, most, nodes, tell
        # Where a lower bound leaves slots over, one more trial would not wait but train.
        self.overlap = overlap and (most is None or most >= layout.slots)
        self._slots = layout.slots
        self._looked = time.monotonic()

    def __call__(self) -> int:
        """How many may be under way, the one that waits included; never none, so that a search waits for a node."""
        return (self._most or max(1, self._current_slots())) + self.overlap

    def _current_slots(self) -> int:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            slots = slots_on(self._nodes(), self._layout.resources)
            if slots != self._slots:
                now = f"{slots} trial{'s' if slots > 1 else ''} at a time" if slots else "no trial: it waits for nodes"
                self._tell(f"the cluster has changed: it holds {now}")
            self._slots, self._looked = slots, time.monotonic()
        return self._slots
