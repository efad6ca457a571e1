"""Number of CPU threads that a model uses."""

import sys


def set_num_threads(number: int) -> None:
    """Set the CPU threads that torch uses for calls of this thread; do nothing if no model has imported torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(number)
