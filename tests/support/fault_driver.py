"""A run of a trial in its own process: `python -m tests.support.fault_driver JOB.json [POINT]`.

Prints the same lines as `tests.support.driver`. Crashes at POINT, one of `tests.support.crashes.POINTS`.
"""

import os
import sys

from kvq_batch.engine.run import RunOptions
from tests.support import driver
from tests.support.crashes import crash_at
from tests.support.poison import PoisonedDecodeWorker


def main() -> int:
    for point in sys.argv[2:]:
        crash_at(point)
    return driver.main(RunOptions(worker=PoisonedDecodeWorker))


if __name__ == "__main__":
    # A module that runs as a script is another module object than the one that others import.
    from tests.support.fault_driver import main as real_main

    os._exit(real_main())
