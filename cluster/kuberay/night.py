"""A night's work, as the Ray job of rayjob.yaml does it on the head: the run, then the merging of its small parts.

    python night.py JOB [--deadline WHEN]

Exit code 0 also where the budget ended the run (4): that is how a night ends, and KubeRay must not start it again.
Every other code is the run's own: KubeRay tries again with a new cluster, and the tables say what is left to do.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

BUDGET_ENDED = 4
TOO_MANY_FAILED = 3


def main(job_file: str, *options: str) -> int:
    job = tomllib.loads(Path(job_file).read_text(encoding="utf-8"))
    code = kvq_batch("run", job_file, "--log", "json", *options)
    if code not in (0, TOO_MANY_FAILED, BUDGET_ENDED):
        return code
    storage = job.get("storage", {})
    where = [f"--{key.replace('_', '-')}={storage[key]}" for key in ("endpoint_url", "region") if key in storage]
    # Nobody waits for this: what it leaves, the next night merges.
    kvq_batch("tables", "compact", job["tables"], *where)
    return 0 if code == BUDGET_ENDED else code


def kvq_batch(*words: str) -> int:
    sys.stderr.write(f"kvq-batch {' '.join(words)}\n")
    code = subprocess.run(["kvq-batch", *words], check=False).returncode
    sys.stderr.write(f"kvq-batch {words[0]}: exit code {code}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
