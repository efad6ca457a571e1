"""CUDA graphs: the kernels of a forward pass, recorded once and launched together.

A network of small kernels is limited by the host, which takes about 5 us to launch one. A graph of them is launched in
one call. It is recorded for one shape, because its memory is fixed; batches of other shapes are run kernel by kernel.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from kvq_batch.models.device_errors import first_line

_LOG = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]

WARM_UPS = 3
"""Batches of one shape that run kernel by kernel before it counts as the usual one. They compile kernels, choose
algorithms and fill the caches of the network, which must not happen while a graph is recorded."""


class GraphedForward:
    """Runs a forward pass; for the first shape that comes often, by a graph.

    `record` returns what replays the pass for this shape, as `record_graph`; None runs everything kernel by kernel. If
    it fails, a warning is logged and there is no graph.
    """

    def __init__(self, forward: Forward, record: Callable[[Forward, Tensor], Forward] | None) -> None:
        self._forward = forward
        self._record = record
        self._replay: Forward | None = None
        self._shape: torch.Size | None = None
        self._seen: Counter[torch.Size] = Counter()

    def __call__(self, batch: Tensor) -> Tensor:
        if self._replay is not None and batch.shape == self._shape:
            return self._replay(batch)
        if self._record is not None:
            self._seen[batch.shape] += 1
            if self._seen[batch.shape] > WARM_UPS:
                record, self._record = self._record, None
                try:
                    self._replay, self._shape = record(self._forward, batch), batch.shape
                except RuntimeError as error:
                    _LOG.warning("running without a CUDA graph: %s", first_line(error))
                else:
                    return self._replay(batch)
        return self._forward(batch)


def record_graph(forward: Forward, batch: Tensor) -> Forward:
    """Record the kernels of a forward pass over batches of this shape, and return what replays them.

    Raises:
        RuntimeError: there is not enough memory, or the pass does something that cannot be recorded.
    """
    static = batch.clone()
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile, for other models of the job.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = forward(static)

    def replay(batch: Tensor) -> Tensor:
        static.copy_(batch)
        graph.replay()
        # The next replay overwrites the memory of the result.
        return found.clone()

    return replay
