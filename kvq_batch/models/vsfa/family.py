"""Model families of VSFA and VSFA_CNN; they need the ResNet-50 of torchvision, VSFA also its head."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kvq_batch.domain.frames import EveryFrame, FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Pooler, Scorer, ScorerSpec
from kvq_batch.models.backbones.imagenet import RESNET50, RESNET50_FILE
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.vsfa.config import VsfaConfig

HEAD = "head"


def _head_shapes() -> Mapping[str, Shape]:
    from kvq_batch.models.checkpoints.networks import network_shapes
    from kvq_batch.models.vsfa.network import VsfaHead

    return network_shapes(lambda: VsfaHead(VsfaConfig()))


HEAD_FILE = PublishedFile(
    part=HEAD,
    names=("VSFA.pt",),
    kind="the head of VSFA",
    origin="lidq92/VSFA on GitHub, folder models",
    licence="MIT",
    shapes=_head_shapes,
    # A layer that is in the file and never used.
    unused=("ann.fc.",),
)


@dataclass(frozen=True, slots=True)
class VsfaFamily(PublishedFamily):
    """VSFA: a score from every frame at native size."""

    name: str = "vsfa"
    summary: str = "VSFA (ACM MM 2019): quality from every frame at native size, pooled with memory; needs weights"
    files: tuple[PublishedFile, ...] = (RESNET50_FILE, HEAD_FILE)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "VSFA", "KoNViD-1k; ImageNet", "MIT; BSD-3-Clause", asdict(VsfaConfig())),
            frames=FrameRequest(EveryFrame(), None, is_streamed=True),
            num_parameters=loaded.num_parameters,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.vsfa.scorer import build_vsfa

        return build_vsfa(spec, loaded.tensors[RESNET50], loaded.tensors[HEAD], options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`. The recurrent layer of the head runs in torch."""
        from kvq_batch.models.vsfa.scorer import VsfaPooler

        return VsfaPooler(self.load_part(options, HEAD))


@dataclass(frozen=True, slots=True)
class VsfaCnnFamily(PublishedFamily):
    """VSFA_CNN of the saliency study: the mean over all frames of VSFA's 4096 features, without a head."""

    name: str = "vsfa-cnn"
    summary: str = "VSFA_CNN: 4096 ResNet-50 features, mean over every frame at native size; no score; needs weights"
    files: tuple[PublishedFile, ...] = (RESNET50_FILE,)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "ResNet-50 features of VSFA_CNN", "ImageNet", "BSD-3-Clause", {}),
            frames=FrameRequest(EveryFrame(), None, is_streamed=True),
            num_features=VsfaConfig().num_features,
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.vsfa.scorer import build_vsfa_cnn

        return build_vsfa_cnn(spec, loaded.tensors[RESNET50], options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`."""
        from kvq_batch.models.vsfa.scorer import MeanPooler

        return MeanPooler()


vsfa = VsfaFamily()
vsfa_cnn = VsfaCnnFamily()
