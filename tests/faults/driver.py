"""A run of a trial in a process of its own: `python -m tests.faults.driver JOB.json [POINT]`.

Speaks as `tests.engine.driver` does; dies at POINT, one of `tests.faults.crashes`.
"""

import json
import os
import sys
from pathlib import Path

from kvq_batch.domain.errors import KvqBatchError
from kvq_batch.engine.planning import plan_job
from kvq_batch.engine.run import RunOptions, run_job
from kvq_batch.spec.load import make_job
from tests.engine.driver import Speaker, say
from tests.faults.crashes import doom
from tests.faults.poison import PoisonedDecodeWorker


def main() -> int:
    job = make_job(json.loads(Path(sys.argv[1]).read_text()), "driver")
    for point in sys.argv[2:]:
        doom(point)
    try:
        summary = run_job(plan_job(job), Speaker(), RunOptions(decode_worker=PoisonedDecodeWorker))
    except KvqBatchError as error:
        say(f"error {error}")
        return 1
    say(f"{summary.state} scored {summary.num_scored}")
    return 0


if __name__ == "__main__":
    # What is run as a script is another module than what others import.
    from tests.faults.driver import main as real_main

    os._exit(real_main())
