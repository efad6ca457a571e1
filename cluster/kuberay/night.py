"""Work of one night, run on the head by the Ray job of rayjob.yaml: the run, then the compaction of the tables.

    python night.py JOB [--deadline WHEN]

Exits with 0 also if the budget ended the run (4): that is the normal end of a night, and KubeRay must not restart it. A
guard that found something (5) is reported by the webhook of the job and by the log: the results are complete, and a
restart would have no new scores to check. Any other exit code is that of the run: KubeRay retries on a new cluster, and
the run does what is missing in the tables.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

BUDGET_ENDED = 4
GUARD_FAILED = 5
TOO_MANY_FAILED = 3


def main(job_file: str, *options: str) -> int:
    job = tomllib.loads(Path(job_file).read_text(encoding="utf-8"))
    code = kvq_batch("run", job_file, "--log", "json", *options)
    if code not in (0, TOO_MANY_FAILED, BUDGET_ENDED, GUARD_FAILED):
        return code
    storage = job.get("storage", {})
    where = [f"--{key.replace('_', '-')}={storage[key]}" for key in ("endpoint_url", "region") if key in storage]
    # A failure here is ignored: the next night compacts again.
    kvq_batch("tables", "compact", job["tables"], *where)
    return 0 if code in (BUDGET_ENDED, GUARD_FAILED) else code


def kvq_batch(*words: str) -> int:
    sys.stderr.write(f"kvq-batch {' '.join(words)}\n")
    code = subprocess.run(["kvq-batch", *words], check=False).returncode
    sys.stderr.write(f"kvq-batch {words[0]}: exit code {code}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
