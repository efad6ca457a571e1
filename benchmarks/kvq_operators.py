"""Measure the core time of each operator of the KVQ network on one thread, and of its products alone.

    OMP_NUM_THREADS=1 python -m benchmarks.kvq_operators [--precision fp32|bf16] [--output markdown|json]

Core time, not wall time, so the figures hold on a busy machine. The second table gives the share of the fp32 or bf16
rate of square products that the network can reach if it only computes its products, at the rate of each of their shapes
alone. Weights are random, which costs the same.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kvq_cpu import CLIP_GMAC, CLIP_SHAPE
from benchmarks.tables import print_table
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.models.kvq.config import PUBLISHED
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.untrained import untrained_tensors

Shapes = tuple[tuple[int, ...], ...]
# Operators that multiply matrices, by name, as functions of their tensors.
PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "aten.linear.default": F.linear,
    "aten.mm.out": torch.mm,
    "aten.scaled_dot_product_attention.default": lambda q, k, v, mask=None: F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask
    ),
}


class OperatorTimes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Core-seconds and calls of each operator by the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[tuple[str, Shapes], float] = defaultdict(float)
        self.calls: Counter[tuple[str, Shapes]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.process_time()
        result = func(*args, **(kwargs or {}))
        spent = time.process_time() - started
        values = (*args, *((kwargs or {}).get(name) for name in ("attn_mask",)))
        key = (str(func), tuple(tuple(value.shape) for value in values if isinstance(value, Tensor)))
        self.seconds[key] += spent
        self.calls[key] += 1
        return result


def best_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Return the least core-seconds of an action."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def alone(operator: str, shapes: Shapes, dtype: torch.dtype) -> float:
    """Return the core-seconds of a product of these shapes alone, on tensors that it has just used."""
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    return best_seconds(lambda: PRODUCTS[operator](*tensors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    tensors = {name: torch.from_numpy(tensor) for name, tensor in untrained_tensors(PUBLISHED).items()}
    network = build_network(PUBLISHED, tensors, dtype, is_frozen=True)
    clip = torch.randn(1, *CLIP_SHAPE, generator=torch.Generator().manual_seed(0))
    square = torch.randn(2048, 2048).to(dtype)
    with torch.inference_mode():
        network(clip)
        rate = 2 * 2.048**3 / best_seconds(lambda: square @ square)
        started = time.process_time()
        network(clip)
        total = time.process_time() - started
        with OperatorTimes() as found:
            network(clip)
        by_operator: dict[str, float] = defaultdict(float)
        products: dict[str, float] = defaultdict(float)
        for (operator, shapes), calls in found.calls.items():
            by_operator[operator] += found.seconds[operator, shapes]
            if operator in PRODUCTS:
                products[operator] += calls * alone(operator, shapes, dtype)
    measured = sum(by_operator.values())
    rows = [
        {"operator": name, "core-s": f"{spent:.2f}", "share": f"{spent / measured:.1%}"}
        for name, spent in _largest(by_operator)[:16]
    ]
    print_table(rows, options.output)
    ideal = 2 * CLIP_GMAC / rate
    reached = [("the whole clip", total), ("its products, alone", sum(products.values()))]
    reached += [(f"of these {name}", spent) for name, spent in _largest(products)]
    rows = [
        {"what": what, "core-s": f"{spent:.2f}", "share of the product rate": f"{ideal / spent:.1%}" if i < 2 else ""}
        for i, (what, spent) in enumerate(reached)
    ]
    print_table(rows, options.output)
    print(f"product rate: {rate:.1f} GFLOP/s")


def _largest(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda pair: -pair[1])


if __name__ == "__main__":
    main()
