"""Benchmarks: every figure of the documentation."""

import kvq_batch  # noqa: F401 - before torch, whose threads then sleep when they are idle
