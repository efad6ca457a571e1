"""Toy training for tests that kill it: `python -m tests.support.training_driver FOLDER [--resume]`.

Prints a line `step N` after every step.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from kvq_batch.training.trainer import NullObserver
from tests.support.synthetic import toy_settings, toy_trainer


class StepPrinter(NullObserver):
    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        sys.stdout.write(f"step {step}\n")
        sys.stdout.flush()


def main() -> None:
    folder, is_resumed = Path(sys.argv[1]), "--resume" in sys.argv
    toy_trainer(folder, toy_settings(), observer=StepPrinter()).train(resume=is_resumed)


if __name__ == "__main__":
    main()
