"""A run of a trial in a process of its own: `python -m tests.support.fault_driver JOB.json [POINT]`.

Speaks as `tests.support.driver` does; dies at POINT, one of `tests.support.crashes`.
"""

import os
import sys

from kvq_batch.engine.run import RunOptions
from tests.support import driver
from tests.support.crashes import doom
from tests.support.poison import PoisonedDecodeWorker


def main() -> int:
    for point in sys.argv[2:]:
        doom(point)
    return driver.main(RunOptions(worker=PoisonedDecodeWorker))


if __name__ == "__main__":
    # What is run as a script is another module than what others import.
    from tests.support.fault_driver import main as real_main

    os._exit(real_main())
