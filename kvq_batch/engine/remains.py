"""What killed workers leave behind on the driver's machine, removed when a run ends, however it ends.

Ray ends its workers by force, so they cannot tidy up after themselves. Folders of living processes are never touched;
what lies on other machines of a cluster goes when the next worker starts there.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvq_batch.io.fetch import sweep_dead
from kvq_batch.media.scratch import scratch_directories, sweep
from kvq_batch.spec.job import Decode

PATIENCE_S = 30.0
"""How long at most the last workers may take to die; they are killed already, but on a machine with eight times more
to do than cores it took them over 5 s (measured). Waited for only while something is there."""


@contextmanager
def no_remains(decode: Decode) -> Iterator[None]:
    """When the block ends, frames and fetched files that its workers left are gone."""
    shared_memory, scratch = Path(decode.shared_memory), Path(decode.scratch or tempfile.gettempdir())
    before = scratch_directories(shared_memory)
    try:
        yield
    finally:
        deadline = time.monotonic() + PATIENCE_S
        sweep(shared_memory)
        while scratch_directories(shared_memory) - before and time.monotonic() < deadline:
            time.sleep(0.1)
            sweep(shared_memory)
        sweep_dead(scratch)
