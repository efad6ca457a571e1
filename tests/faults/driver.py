"""A run of a trial in a process of its own: `python -m tests.faults.driver JOB.json [POINT]`.

Speaks as `tests.engine.driver` does; dies at POINT, one of `tests.faults.crashes`.
"""

import os
import sys

from kvq_batch.engine.run import RunOptions
from tests.engine import driver
from tests.faults.crashes import doom
from tests.faults.poison import PoisonedDecodeWorker


def main() -> int:
    for point in sys.argv[2:]:
        doom(point)
    return driver.main(RunOptions(decode_worker=PoisonedDecodeWorker))


if __name__ == "__main__":
    # What is run as a script is another module than what others import.
    from tests.faults.driver import main as real_main

    os._exit(real_main())
