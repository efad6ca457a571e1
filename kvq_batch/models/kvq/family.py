"""Model families of KVQ: `kvq` (published sizes), `kvq-lite` (small, with trained weights) and `kvq-tiny` (for tests).

torch is imported only where a pickle is read or a network is built, so describing untrained or safetensors weights is
fast.
"""

from dataclasses import dataclass
from pathlib import Path

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.frames import NATIVE_SIDE, FrameRequest, Sampling
from kvq_batch.domain.scorer import STD, ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.tensors import is_safetensors
from kvq_batch.models.kvq.checkpoint import Checkpoint, load
from kvq_batch.models.kvq.config import LITE, PUBLISHED, TINY, KvqConfig
from kvq_batch.models.kvq.untrained import UNTRAINED, untrained_checkpoint


@dataclass(frozen=True, slots=True)
class KvqFamily:
    """KVQ with one preset of sizes.

    `default_weights` is used by a job that names no weights; None rejects such a job. Without `has_fixed_sizes`, a
    safetensors checkpoint may have other sizes than the preset.
    """

    name: str
    summary: str
    config: KvqConfig
    default_weights: str | None
    has_fixed_sizes: bool

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer, after reading and checking its whole weights.

        Raises:
            SpecError: no weights, or fp16 on a CPU.
            CheckpointError: weights that are missing, damaged, unsafe or of another network.
        """
        return scorer_spec(self._checkpoint(options))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or the machine has no GPU.
        """
        from kvq_batch.models.kvq.scorer import KvqScorer, PipelinedKvqScorer

        checkpoint = self._checkpoint(options)
        kind = PipelinedKvqScorer if options.device == "cuda" else KvqScorer
        return kind(scorer_spec(checkpoint), checkpoint, options)

    def _checkpoint(self, options: ModelOptions) -> Checkpoint:
        if options.precision == "fp16" and options.device == "cpu":
            raise SpecError(f"Model {options.name!r}: fp16 needs a GPU. Set precision to 'fp32' or 'bf16' on a CPU.")
        weights = options.weights or self.default_weights
        if weights is None:
            raise SpecError(
                f"Model {options.name!r} needs KVQ.pth (the weights of its authors, saved by torch.save, from "
                "lero233/KVQ on the model hub that qyp2000/KVQ on GitHub names, no licence given), which this package "
                "does not include: download it or train your own with `kvq-batch train`, and set --weights PATH, or "
                f'weights = "PATH" in the job file, or "{UNTRAINED}" for random weights, whose scores do not measure '
                "quality."
            )
        if weights == UNTRAINED:
            return untrained_checkpoint(self.name, self.config)
        path = Path(weights)
        if is_safetensors(path):
            checkpoint = load(path)
        else:
            from kvq_batch.models.kvq.published import load_published

            checkpoint = load_published(path, self.config, self.name)
        if checkpoint.config != self.config and self.has_fixed_sizes:
            raise CheckpointError(
                f"{path}: the network has other sizes than {self.name!r}. Use it with the model 'kvq' instead."
            )
        return checkpoint


def frame_request(config: KvqConfig) -> FrameRequest:
    """Return the frames that a network of these sizes scores. Training uses them as the first view."""
    sampling = frame_sampling(config)
    if config.crop:
        return FrameRequest(sampling, config.input_size, short_side=NATIVE_SIDE)
    return FrameRequest(sampling, config.input_size, config.fragments if all(config.fragments) else None)


def frame_sampling(config: KvqConfig) -> Sampling:
    """Return how a network of these sizes samples frames."""
    return Sampling(config.num_segments, config.num_frames // config.num_segments)


def scorer_spec(checkpoint: Checkpoint) -> ScorerSpec:
    """Return the declaration of a scorer with these weights."""
    return ScorerSpec(
        card=checkpoint.card,
        frames=frame_request(checkpoint.config),
        outputs=(STD,) if checkpoint.card.spread[0] else (),
        maps=("texture", "saliency"),
        precisions=("fp32", "bf16", "fp16"),
        # 2: the logits of saliency are float32, and a clip that overflows is scored in fp32.
        fp16_algorithm=2,
        num_parameters=sum(array.size for array in checkpoint.tensors.values()),
    )


kvq = KvqFamily(
    name="kvq",
    summary="KVQ (CVPR 2025), perceptual quality with texture and saliency maps; needs weights",
    config=PUBLISHED,
    default_weights=None,
    has_fixed_sizes=False,
)

kvq_lite = KvqFamily(
    name="kvq-lite",
    summary="KVQ-Lite, a small trained network with its weights: estimates VMAF without a reference, not opinions",
    config=LITE,
    default_weights=str(Path(__file__).with_name("kvq-lite.safetensors")),
    has_fixed_sizes=True,
)

kvq_tiny = KvqFamily(
    name="kvq-tiny",
    summary="a small network for tests, UNTRAINED unless weights are given: scores do not measure quality",
    config=TINY,
    default_weights=UNTRAINED,
    has_fixed_sizes=True,
)
