"""The names under which KVQ is registered: the published sizes, the trained small member in the box, one for tests.

What a job says of weights becomes a checked checkpoint here. torch is imported only where a pickle is read or a
network is built, so that a plan over untrained or safetensors weights costs no torch.
"""

from dataclasses import dataclass
from pathlib import Path

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.kvq.card import digest
from kvq_batch.models.kvq.checkpoint import Checkpoint, is_safetensors, load
from kvq_batch.models.kvq.config import LITE, PUBLISHED, TINY, KvqConfig
from kvq_batch.models.kvq.untrained import untrained_tensors

UNTRAINED = "untrained"


@dataclass(frozen=True, slots=True)
class KvqFamily:
    """KVQ of one preset of sizes; `default_weights` is what a job without weights gets, None refuses such a job.

    With `any_sizes` a checkpoint of ours may bring other sizes than the preset, as its card says.
    """

    name: str
    summary: str
    config: KvqConfig
    default_weights: str | None
    any_sizes: bool

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """The declaration of the scorer, its weights read and verified in full.

        Raises:
            SpecError: no weights, or half precision on a CPU.
            CheckpointError: weights that are missing, damaged, dangerous or another network's.
        """
        return scorer_spec(self._checkpoint(options))

    def build(self, options: ModelOptions) -> Scorer:
        """The live scorer on its device.

        Raises:
            SpecError: as `describe`, or a GPU that is not there.
        """
        from kvq_batch.models.kvq.scorer import KvqScorer

        checkpoint = self._checkpoint(options)
        return KvqScorer(scorer_spec(checkpoint), checkpoint, options)

    def _checkpoint(self, options: ModelOptions) -> Checkpoint:
        if options.precision == "fp16" and options.device == "cpu":
            raise SpecError(f"model {options.name!r}: fp16 needs a GPU; on a CPU use fp32 or bf16")
        weights = options.weights or self.default_weights
        if weights is None:
            raise SpecError(
                f"model {options.name!r} needs weights: give a file (a published .pth or this package's .safetensors), "
                f'or "{UNTRAINED}" for seeded random weights, whose scores do not measure quality'
            )
        if weights == UNTRAINED:
            return untrained_checkpoint(self.name, self.config)
        path = Path(weights)
        if is_safetensors(path):
            checkpoint = load(path)
        else:
            from kvq_batch.models.kvq.published import load_published

            checkpoint = load_published(path, self.config, self.name)
        if checkpoint.config != self.config and not self.any_sizes:
            raise CheckpointError(f"{path}: its sizes are not those of {self.name!r}; name the model 'kvq' instead")
        return checkpoint


def untrained_checkpoint(name: str, config: KvqConfig, seed: int = 0) -> Checkpoint:
    """Seeded random weights with a card that says so."""
    tensors = untrained_tensors(config, seed)
    card = ModelCard(
        name=name,
        version=UNTRAINED,
        digest=digest(tensors, config),
        origin="untrained",
        summary=f"UNTRAINED: random weights of seed {seed}; its scores and maps are numbers, NOT a quality",
        licence="Apache-2.0",
    )
    return Checkpoint(card, config, tensors)


def frame_request(config: KvqConfig) -> FrameRequest:
    """The frames that a network of these sizes scores, and so the first that it is trained on."""
    sampling = Sampling(config.num_segments, config.num_frames // config.num_segments)
    return FrameRequest(sampling, config.input_size, config.fragments if all(config.fragments) else None)


def scorer_spec(checkpoint: Checkpoint) -> ScorerSpec:
    """What a scorer of these weights declares."""
    return ScorerSpec(
        card=checkpoint.card,
        frames=frame_request(checkpoint.config),
        maps=("texture", "saliency"),
        precisions=("fp32", "bf16", "fp16"),
    )


kvq = KvqFamily(
    name="kvq",
    summary="KVQ (CVPR 2025), perceptual quality with texture and saliency maps; needs weights",
    config=PUBLISHED,
    default_weights=None,
    any_sizes=True,
)

kvq_lite = KvqFamily(
    name="kvq-lite",
    summary="KVQ-Lite, a small trained network with its weights: estimates VMAF without a reference, not opinions",
    config=LITE,
    default_weights=str(Path(__file__).with_name("kvq-lite.safetensors")),
    any_sizes=False,
)

kvq_tiny = KvqFamily(
    name="kvq-tiny",
    summary="a small network for tests, UNTRAINED unless weights are given: scores do not measure quality",
    config=TINY,
    default_weights=UNTRAINED,
    any_sizes=False,
)
