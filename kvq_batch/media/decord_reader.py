"""Frames by number through decord, the decoder of the published pipeline.

`decoders.choose_decoder` decides which files it gets. Files are rejected if decord counts other frames than the probe.
decord conceals damage, starts in the middle of a gradual refresh, and believes single packets that are marked as
keyframes by mistake, all without an error, so this reader does, too.
"""

from collections.abc import Iterator
from pathlib import Path

import decord
import numpy as np
from decord._ffi.base import DECORDError
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.media.probe import Probed


class DecordReader:
    """`FrameReader` over decord."""

    def frames(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.frames`."""
        try:
            video = decord.VideoReader(str(path), num_threads=num_threads)
            if len(video) != probed.facts.num_frames:
                raise DecodeError(
                    "decoder_unsuitable",
                    f"decord counts {len(video)} frames, but the file has {probed.facts.num_frames}. "
                    'Set decoder = "auto" in the job.',
                    True,
                )
            for number in wanted.tolist():
                yield number, video[number].asnumpy()
        except (DECORDError, RuntimeError) as error:
            text = str(error).strip().splitlines()[0][:200]
            raise DecodeError(
                "undecodable", f"decord cannot decode a frame that is needed: {text}. Upload the video again.", True
            ) from error


READER = DecordReader()
