"""Counts of what a forward pass asks of a device: kernels, host synchronisations and uploads.

On the device "meta" nothing is computed, so a network of the published size is counted in a second. There, reading a
value raises as well.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_SYNCS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
    "aten::allclose",
}
"""Operators whose result has a size or a value that the host must know: it waits for the device."""

_ALLOCATIONS = ("aten::empty", "aten::new_empty")


class OperatorCounts(TorchDispatchMode):
    """Counts operators by name while it is active. Use it in inference mode: composite operators count once.

    `kernels` are operators that compute something: no views, no conversions to the same type, no allocations.
    `host_syncs` are those of HOST_SYNCS, boolean indexing, and copies to the CPU. `uploads` are copies from the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.host_syncs: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function._schema.name
        inputs, outputs = list(_tensors([args, kwargs])), list(_tensors(found))
        if name in HOST_SYNCS or (name.startswith("aten::index") and _has_mask(inputs)):
            self.host_syncs[name] += 1
        devices = {tensor.device.type for tensor in inputs if tensor.dim()}, {t.device.type for t in outputs}
        if devices[0] == {"meta"} and devices[1] == {"cpu"}:
            self.host_syncs[f"{name} to the CPU"] += 1
        if devices[0] == {"cpu"} and devices[1] == {"meta"}:
            self.uploads[name] += 1
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        is_alias = all(tensor.untyped_storage()._cdata in storages for tensor in outputs)
        if not outputs or name.startswith(_ALLOCATIONS) or (is_alias and not function._schema.is_mutable):
            return found
        self.kernels[name] += 1
        return found


def _has_mask(tensors: Sequence[Tensor]) -> bool:
    return any(tensor.dtype == torch.bool for tensor in tensors[1:])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
