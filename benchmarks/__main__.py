"""Every benchmark, one after the other, as the Markdown of `benchmarks/README.md`: `python -m benchmarks`."""

import os
import platform
import subprocess
import sys

BENCHMARKS = (
    ("The framework alone", "pipeline", ()),
    ("What one driver writes and commits", "commit_rate", ()),
    ("Compaction", "compaction", ()),
    ("A whole run against its slower stage", "end_to_end", ()),
    ("The small member of the family", "end_to_end", ("--model", "kvq-tiny", "--videos", "24")),
    ("Side by side", "side_by_side", ()),
    ("The model in the box", "end_to_end", ("--model", "kvq-lite", "--videos", "24")),
    ("Decoding and resizing", "decode", ()),
    ("KVQ on a CPU", "kvq_cpu", ()),
    ("Plans against millions of scores", "planning", ()),
    ("Forecasts against runs", "scaling", ()),
    ("What a run holds in memory", "memory", ()),
    ("Freed memory, kept", "kept_memory", ()),
    ("How maps are stored", "maps_encoding", ()),
    ("What a label costs", "labels", ()),
)


def main() -> int:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}.", flush=True)
    failed = 0
    for title, module, arguments in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        print(f"\n## {title}\n\n`python {' '.join(command[1:])}`\n", flush=True)
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
