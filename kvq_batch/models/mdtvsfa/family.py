"""Model family of MDTVSFA; it needs the ResNet-50 of torchvision and the head of its authors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kvq_batch.domain.frames import EveryFrame, FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Pooler, Scorer, ScorerSpec
from kvq_batch.models.backbones.imagenet import RESNET50, RESNET50_FILE
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.mdtvsfa.config import DATA_SETS, MixedHeadConfig

HEAD = "head"


def _head_shapes() -> Mapping[str, Shape]:
    from kvq_batch.models.checkpoints.networks import network_shapes
    from kvq_batch.models.mdtvsfa.network import MixedHead

    return network_shapes(lambda: MixedHead(MixedHeadConfig()))


HEAD_FILE = PublishedFile(
    part=HEAD,
    names=("MDTVSFA.pt",),
    kind="the head of MDTVSFA",
    origin="lidq92/MDTVSFA on GitHub, folder models",
    licence="MIT",
    shapes=_head_shapes,
    sha256=("d5dd4fdf69ad4ee0",),
)


@dataclass(frozen=True, slots=True)
class MdtvsfaFamily(PublishedFamily):
    """MDTVSFA: a score from every frame at native size, also on the scales of four data sets."""

    name: str = "mdtvsfa"
    summary: str = "MDTVSFA (IJCV 2021): VSFA trained on four sets, with the score on each one's scale; needs weights"
    files: tuple[PublishedFile, ...] = (RESNET50_FILE, HEAD_FILE)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        training = "KoNViD-1k, CVD2014, LIVE-Qualcomm, LIVE-VQC; ImageNet"
        return ScorerSpec(
            card=loaded.card(self.name, "MDTVSFA", training, "MIT; BSD-3-Clause", asdict(MixedHeadConfig())),
            frames=FrameRequest(EveryFrame(), None, is_streamed=True),
            outputs=("relative", *(DATA_SETS[name] for name in MixedHeadConfig().data_sets)),
            num_parameters=loaded.num_parameters,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.mdtvsfa.scorer import build_mdtvsfa

        return build_mdtvsfa(spec, loaded.tensors[RESNET50], loaded.tensors[HEAD], options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`. The recurrent layer of the head runs in torch."""
        from kvq_batch.models.mdtvsfa.scorer import MixedPooler

        return MixedPooler(self.load_part(options, HEAD))


mdtvsfa = MdtvsfaFamily()
