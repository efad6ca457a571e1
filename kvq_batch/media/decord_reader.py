"""Frames by number through decord, the decoder of the published pipeline.

`decoders.choose_decoder` decides which files it gets. Files are rejected if decord counts other frames than the probe.
decord conceals damage, starts in the middle of a gradual refresh, and believes single packets that are marked as
keyframes by mistake, all without an error, so this reader does, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decord
import numpy as np
from decord._ffi.base import DECORDError
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import Planes
from kvq_batch.media.probe import Probed


@dataclass(frozen=True, slots=True)
class _DecordPicture:
    """Implements `Picture` for a frame that decord converted."""

    converted: NDArray[np.uint8]

    def rgb(self) -> NDArray[np.uint8]:
        """See `Picture.rgb`."""
        return self.converted

    def yuv(self, kind: Planes) -> tuple[NDArray[Any], ...]:
        """See `Picture.yuv`."""
        raise DecodeError(
            "decoder_unsuitable", 'decord returns RGB only, and a model needs planes; set decoder = "auto"', True
        )


class DecordReader:
    """`FrameReader` over decord."""

    def frames(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.frames`."""
        for number, picture in self.pictures(path, probed, wanted, num_threads):
            yield number, picture.rgb()

    def pictures(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[int, _DecordPicture]]:
        """See `FrameReader.pictures`."""
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
                yield number, _DecordPicture(video[number].asnumpy())
        except (DECORDError, RuntimeError) as error:
            text = str(error).strip().splitlines()[0][:200]
            raise DecodeError(
                "undecodable", f"decord cannot decode a frame that is needed: {text}. Upload the video again.", True
            ) from error


READER = DecordReader()
