"""Model family of the coarse-to-fine network on SwinV2, `swinv2-ctf`. It scores with weights that the user trained.

Nobody has published weights. torch is imported only where weights are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, SegmentSampling
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.swinv2_ctf.config import CtfConfig

if TYPE_CHECKING:
    from kvq_batch.models.swinv2_ctf.checkpoint import CtfCheckpoint


@dataclass(frozen=True, slots=True)
class CtfFamily:
    """The network of any sizes; a checkpoint holds its own."""

    name: str
    summary: str

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer, after reading and checking its whole weights.

        Raises:
            SpecError: no weights.
            CheckpointError: weights that are missing, damaged or of another network.
        """
        return scorer_spec(self._checkpoint(options))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or the machine has no GPU.
        """
        from kvq_batch.models.swinv2_ctf.scorer import CtfScorer

        checkpoint = self._checkpoint(options)
        return CtfScorer(scorer_spec(checkpoint), checkpoint, options)

    def _checkpoint(self, options: ModelOptions) -> "CtfCheckpoint":
        if options.weights in (None, "untrained"):
            raise SpecError(
                f"Model {self.name!r} needs a .safetensors file that `kvq-batch train` wrote for a job with a section "
                "[swinv2], because nobody has published weights of it (arXiv 2401.08522), and ImageNet weights alone "
                "are not a quality model. Train it with jobs/swinv2/train.toml and set --weights PATH, or choose "
                "another model."
            )
        from kvq_batch.models.swinv2_ctf.checkpoint import FORMAT

        return FORMAT.load(Path(str(options.weights)))


def frame_request(config: CtfConfig) -> FrameRequest:
    """Return the frames that a network of these sizes scores: the middle of each segment, cropped to the centre."""
    return FrameRequest(
        SegmentSampling(config.num_frames),
        config.input_size,
        resize="bilinear-antialias",
        short_side=config.short_side,
    )


def scorer_spec(checkpoint: "CtfCheckpoint") -> ScorerSpec:
    """Return the declaration of a scorer with these weights."""
    return ScorerSpec(card=checkpoint.card, frames=frame_request(checkpoint.config))


swinv2_ctf = CtfFamily(
    "swinv2-ctf", "SwinV2, coarse to fine (arXiv 2401.08522): quality of compressed video; needs weights that you train"
)
