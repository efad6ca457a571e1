"""A label worker that is killed when it reads certain references, selected by their name.

kill-once*    the first time only
kill-always*  every time
"""

import os
import signal
from typing import Any

from kvq_batch.labeling.worker import LabelWorker
from kvq_batch.media.planes import Planes
from kvq_batch.storage.options import local_path


class DyingLabelWorker(LabelWorker):
    """The real worker, except for references with such names."""

    def _read_segment(self, row: dict[str, Any]) -> Planes:
        once = local_path(row["uri"]).with_suffix(".was-here")
        name = row["video_id"]
        if name.startswith("kill-always") or (name.startswith("kill-once") and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._read_segment(row)
