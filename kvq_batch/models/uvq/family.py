"""Model families of UVQ 1.5 and UVQ 1.0; they score with the networks that Google publishes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvq_batch.domain.frames import FrameRequest, RateSampling
from kvq_batch.domain.scorer import ModelOptions, Pooler, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.uvq.config import AGGREGATION, COMPRESSION, CONTENT, DISTORTION, HEADS_10, RATE_10

_LICENCE = "Apache-2.0"
_TRAINING = "YouTube-UGC"


def _shapes(network: str) -> Callable[[], Mapping[str, Shape]]:
    """Return a function that returns the tensors of a class of `uvq/network.py` or `uvq/compression.py`."""

    def shapes() -> Mapping[str, Shape]:
        from kvq_batch.models.checkpoints.networks import network_shapes
        from kvq_batch.models.uvq import compression
        from kvq_batch.models.uvq import network as networks

        return network_shapes(getattr(compression if network == "Compression10" else networks, network))

    return shapes


def _file_15(part: str, network: str, sha256: tuple[str, ...] = ()) -> PublishedFile:
    return PublishedFile(
        part=part,
        names=(f"{part}_net.pth",),
        kind="the networks of UVQ 1.5",
        origin="google/uvq on GitHub, folder uvq1p5_pytorch/checkpoints",
        licence=_LICENCE,
        shapes=_shapes(network),
        sha256=sha256,
    )


def _file_10(part: str, name: str, network: str) -> PublishedFile:
    return PublishedFile(
        part=part,
        names=(name,),
        kind="the networks of UVQ 1.0",
        origin="google/uvq on GitHub, folder uvq_pytorch/checkpoint and its aggregationnet_models",
        licence=_LICENCE,
        shapes=_shapes(network),
        # Two matrices of the compression network that are never used.
        unused=("nonlinear1", "nonlinear2"),
    )


FILES_15 = (
    _file_15(CONTENT, "Content15"),
    _file_15(DISTORTION, "Distortion15"),
    _file_15(AGGREGATION, "Aggregation15", ("0f214c76adfbc3d0",)),
)
FILES_10 = (
    _file_10(COMPRESSION, "compressionnet_pytorch_statedict.pt", "Compression10"),
    _file_10(CONTENT, "contentnet_pytorch.pt", "Content10"),
    _file_10(DISTORTION, "distortionnet_pytorch_statedict.pt", "Distortion10"),
    *(
        _file_10(head, f"ytugc20s_{number}_avgpool_compression_content_distortion.pt", "Aggregation10")
        for number, head in enumerate(HEADS_10)
    ),
)


@dataclass(frozen=True, slots=True)
class Uvq15Family(PublishedFamily):
    """UVQ 1.5: one frame a second at 1080p; the raw score is in 1..5."""

    name: str = "uvq-1.5"
    summary: str = "UVQ 1.5 (Google): content and distortion of one frame a second, 1..5; needs weights"
    files: tuple[PublishedFile, ...] = FILES_15

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "UVQ 1.5", _TRAINING, _LICENCE, {}),
            frames=FrameRequest(RateSampling(1.0), None, is_streamed=True),
            num_parameters=loaded.num_parameters,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.uvq.scorer import Uvq15Scorer

        return Uvq15Scorer(spec, loaded.tensors, options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`."""
        from kvq_batch.models.uvq.scorer import SecondsPooler

        return SecondsPooler()


@dataclass(frozen=True, slots=True)
class Uvq10Family(PublishedFamily):
    """UVQ 1.0: five frames a second at 720p; the raw score is the mean of five heads, without bounds."""

    name: str = "uvq-1.0"
    summary: str = "UVQ 1.0 (Google): compression, content and distortion of each second; needs weights"
    files: tuple[PublishedFile, ...] = FILES_10

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "UVQ 1.0", _TRAINING, _LICENCE, {}),
            frames=FrameRequest(RateSampling(float(RATE_10)), None, is_streamed=True, stream_group=RATE_10),
            num_parameters=loaded.num_parameters,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.uvq.scorer import Uvq10Scorer

        return Uvq10Scorer(spec, loaded.tensors, options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`."""
        from kvq_batch.models.uvq.scorer import SecondsPooler

        return SecondsPooler(RATE_10)


uvq_15 = Uvq15Family()
uvq_10 = Uvq10Family()
