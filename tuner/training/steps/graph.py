"""A training step as a CUDA graph: the host starts all kernels of a step at once, instead of one after the other.

Of the fused MLP a step has about a hundred kernels, and a batch of 1,024 keeps a large GPU busy for less time than the
host needs to start them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.batches import Batch
from tuner.errors import ConfigError, first_line

# Steps before the graph is captured: torch and the libraries allocate and choose their kernels in the first ones.
WARM_UP = 3


class GraphedStep:
    """Takes steps: the first ones as they are, the others by the replay of a graph of such a step.

    Every step is taken once and in the order of its batch, and draws the same random numbers either way. A step may
    not read a value on the host. What changes from step to step must lie in tensors that stay: the batch, which is
    copied into the tensors of the graph, the learning rate, the weights. A batch of another shape than that of the
    graph, or with more labels than the graph has room for, is trained on without the graph.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = (), *, required: bool) -> None:
        """Prepare for one training.

        Args:
            device: a GPU.
            generators: from which the step draws, beside torch's own.
            required: whether a step that cannot be captured is an error; else it is trained on without a graph.
        """
        self.device, self.generators, self.required = device, generators, required
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.steps = 0  # taken before the capture
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None  # of the graph
        self.failed = False

    def __call__(self, step: Callable[[Batch], None], batch: Batch) -> None:
        """Take a step; `step` must be the same function of its batch in every call.

        Raises:
            ConfigError: the step cannot be captured, and it is required.
        """
        if self.graph is None and not self.failed:
            if self.steps < WARM_UP:
                self.steps += 1
                self._on_stream(step, batch)
                return
            self._capture(step, batch)
        if self.graph is None or self.batch is None or not fill(self.batch, batch):
            step(batch)
            return
        self.graph.replay()

    def _on_stream(self, step: Callable[[Batch], None], batch: Batch) -> None:
        """Take a step on the stream of the capture, which is to find all that is made once already there."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step(batch)
        current.wait_stream(self.stream)

    def _capture(self, step: Callable[[Batch], None], batch: Batch) -> None:
        """Record the kernels of a step, without running them."""
        self.batch = with_room(batch)
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        generator = torch.cuda.default_generators[current.device_index]
        before = generator.clone_state()
        try:
            with torch.cuda.device(self.device):  # generators are registered for the current device
                for one in self.generators:
                    graph.register_generator_state(one)
                # Other threads, which bring batches, may allocate meanwhile.
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    step(self.batch)
            self.graph = graph
        except RuntimeError as error:
            # A capture that fails leaves its stream as the current one, and its generator in the state of a capture.
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(before)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if self.required:
                raise ConfigError(
                    f"training.cuda_graph: true, but this step cannot be captured ({first_line(error)}); set it to auto"
                ) from error
            self.failed = True
            logging.getLogger(__name__).warning("training continues without a CUDA graph (%s)", first_line(error))


def with_room(batch: Batch) -> Batch:
    """A copy of a batch in tensors of its own, with room for more labels than it has (see models/ragged.py)."""
    return replace(
        batch,
        rows=batch.rows.clone(),
        inputs=tuple(tensor.clone() for tensor in batch.inputs),
        label_offsets=batch.label_offsets.clone(),
        label_indices=_padded(batch.label_indices),
        rated_offsets=None if batch.rated_offsets is None else batch.rated_offsets.clone(),
        rated_indices=None if batch.rated_indices is None else _padded(batch.rated_indices),
    )


def fill(target: Batch, batch: Batch) -> bool:
    """Copy a batch into the tensors of `target`, a batch from `with_room`.

    Returns:
        False, and nothing is copied, where the batch has another shape or more labels than there is room for.
    """
    pairs = list(zip(target.inputs, batch.inputs, strict=True))
    pairs += [(target.rows, batch.rows), (target.label_offsets, batch.label_offsets)]
    padded = [(target.label_indices, batch.label_indices)]
    if target.rated_offsets is not None and target.rated_indices is not None:
        assert batch.rated_offsets is not None and batch.rated_indices is not None
        pairs.append((target.rated_offsets, batch.rated_offsets))
        padded.append((target.rated_indices, batch.rated_indices))
    if any(one.shape != other.shape for one, other in pairs) or any(len(one) < len(other) for one, other in padded):
        return False
    pairs += [(one[: len(other)], other) for one, other in padded]
    for one, other in pairs:
        one.copy_(other)
    return True


def _padded(indices: Tensor) -> Tensor:
    """Room for twice the labels of a batch, and for batches of few videos."""
    room = indices.new_zeros(2 * len(indices) + 1024)
    room[: len(indices)] = indices
    return room
