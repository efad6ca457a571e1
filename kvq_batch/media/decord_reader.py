"""Frames by number through decord, the decoder of the published pipeline.

It exists to repeat that pipeline and to check PyAV against; `decoders.choose_decoder` says what it may be given. It
does not rotate, and trusts decord with no file whose number of frames differs from the probed one. What decord itself
does not tell, this cannot: it conceals damage, and starts in the middle of a gradual refresh.
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
                    f"decord counts {len(video)} frames, the file holds {probed.facts.num_frames}; "
                    'say decoder = "auto" in the job',
                    True,
                )
            for number in wanted.tolist():
                yield number, video[number].asnumpy()
        except (DECORDError, RuntimeError) as error:
            text = str(error).strip().splitlines()[0][:200]
            raise DecodeError("undecodable", f"decord cannot decode a frame that is needed ({text})", True) from error


READER = DecordReader()
