"""Floating-point comparisons whose tolerance follows from the size of what is compared.

A sum of n float32 products differs between instruction sets, thread counts and libraries by a few times sqrt(n) * 6e-8
of the largest of its terms. A small element next to large ones therefore has a large relative error on one machine
and none on another. These functions compare with the largest element of a tensor, never element by element.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

FLOAT32_RELATIVE = 1e-6
"""Allowed difference of forward passes and optimizer steps in float32, as a share of the scale: 17 times the unit
roundoff (6e-8). Measured on one Xeon: at most 1.3e-7, with AVX-512, AVX2 and without vector code, 1 or 2 threads."""

GRADIENT_RELATIVE = 5e-5
"""Allowed difference of gradients that two attention kernels compute, as a share of the scale of their layer.
Measured in the same configurations: at most 5.7e-6; an AMD EPYC was reported with 2e-6."""


def assert_close_to_scale(
    actual: Any, expected: Any, relative: float = FLOAT32_RELATIVE, scale: float | None = None, name: str = ""
) -> None:
    """Check that no element of `actual` differs from `expected` by more than `relative` times `scale`.

    Args:
        actual: array or tensor, or one number.
        expected: the reference, of the same shape.
        relative: allowed difference as a share of `scale`.
        scale: size of what is compared; by default the largest magnitude of `expected`. Give it where `expected` is a
            small difference of large terms, such as a gradient that is zero in exact arithmetic.
        name: what is compared, for the message.
    """
    found, reference = _array(actual), _array(expected)
    assert found.shape == reference.shape, f"{name}: shape {found.shape} instead of {reference.shape}"
    assert np.isfinite(found).all(), f"{name}: not finite"
    size = float(np.abs(reference).max(initial=0.0)) if scale is None else scale
    difference = float(np.abs(found - reference).max(initial=0.0))
    assert difference <= relative * size, f"{name}: differs by {difference:.3g}, {relative:g} of {size:.3g} is allowed"


def assert_gradients_close(actual: Mapping[str, Any], expected: Mapping[str, Any], relative: float) -> None:
    """Compare the gradients of a network tensor by tensor, each with the scale of its own layer.

    The scale of a bias is the larger of its own and of its layer's weight: a bias before a softmax or a normalisation
    has a gradient of zero in exact arithmetic, so that only rounding errors are left of it.
    """
    assert actual.keys() == expected.keys()
    largest = {name: float(np.abs(_array(value)).max()) for name, value in expected.items()}
    for name, value in expected.items():
        weight = f"{name.removesuffix('bias')}weight"
        assert_close_to_scale(actual[name], value, relative, max(largest[name], largest.get(weight, 0.0)), name)


def _array(values: Any) -> "np.ndarray[Any, np.dtype[np.float64]]":
    if hasattr(values, "detach"):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)
