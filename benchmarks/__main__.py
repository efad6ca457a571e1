"""Run every benchmark and print the Markdown of `benchmarks/README.md`: `python -m benchmarks`."""

import os
import platform
import subprocess
import sys

BENCHMARKS = (
    ("The framework alone", "pipeline", ()),
    ("Commit rate of one driver", "commit_rate", ()),
    ("Compaction", "compaction", ()),
    ("A whole run against its slower stage", "end_to_end", ()),
    ("A whole run with the small untrained model", "end_to_end", ("--model", "kvq-tiny", "--videos", "24")),
    ("Side by side", "side_by_side", ()),
    ("A whole run with the included model", "end_to_end", ("--model", "kvq-lite", "--videos", "24")),
    ("Decoding and resizing", "decode", ()),
    ("One decode for several models", "shared_decode", ()),
    ("KVQ on a CPU", "kvq_cpu", ()),
    ("KVQ on a GPU, and half precision", "kvq_gpu", ()),
    ("KVQ-Lite on a CPU", "lite_cpu", ()),
    ("Plans against millions of scores", "planning", ()),
    ("Questions about a catalog", "questions", ("--videos", "1e4", "1e5")),
    ("Drift of a night", "drift", ("--repeats", "400")),
    ("Forecasts against runs", "scaling", ()),
    ("Memory of a run", "memory", ()),
    ("Keeping freed memory", "kept_memory", ()),
    ("Encoding of maps", "maps_encoding", ()),
    ("Cost of a label", "labels", ()),
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
