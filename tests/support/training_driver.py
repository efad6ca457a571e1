"""A toy training in a process of its own, to be killed: `python -m tests.support.training_driver FOLDER [--resume]`.

Says on stdout, a line each, `step N` for every step that is done.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from kvq_batch.training.trainer import NullObserver
from tests.support.synthetic import toy_settings, toy_trainer


class Speaker(NullObserver):
    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        sys.stdout.write(f"step {step}\n")
        sys.stdout.flush()


def main() -> None:
    folder, is_resumed = Path(sys.argv[1]), "--resume" in sys.argv
    toy_trainer(folder, toy_settings(), observer=Speaker()).train(resume=is_resumed)


if __name__ == "__main__":
    main()
