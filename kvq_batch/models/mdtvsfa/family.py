"""Model family of MDTVSFA; it needs the ResNet-50 of torchvision and the head of its authors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kvq_batch.domain.frames import EveryFrame, FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Pooler, Scorer, ScorerSpec
from kvq_batch.models.backbones.imagenet import RESNET50, RESNET50_FILE
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile, load_published_files
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
class MdtvsfaFamily:
    """MDTVSFA: a score from every frame at native size, also on the scales of four data sets."""

    name: str = "mdtvsfa"
    summary: str = "MDTVSFA (IJCV 2021): VSFA trained on four sets, with the score on each one's scale; needs weights"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer, after reading and checking its whole weights.

        Raises:
            SpecError: no weights, or a file is missing.
            CheckpointError: weights that are damaged, unsafe or of another network.
        """
        return self._spec(self._load(options))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or the machine has no GPU.
        """
        from kvq_batch.models.mdtvsfa.scorer import build_mdtvsfa

        loaded = self._load(options)
        return build_mdtvsfa(self._spec(loaded), loaded.tensors[RESNET50], loaded.tensors[HEAD], options)

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """See `PoolingFamily.build_pooler`. The recurrent layer of the head runs in torch."""
        from kvq_batch.models.mdtvsfa.scorer import MixedPooler

        return MixedPooler(load_published_files(self.name, options.weights, (HEAD_FILE,)).tensors[HEAD])

    def _load(self, options: ModelOptions) -> LoadedFiles:
        return load_published_files(self.name, options.weights, (RESNET50_FILE, HEAD_FILE))

    def _spec(self, loaded: LoadedFiles) -> ScorerSpec:
        training = "KoNViD-1k, CVD2014, LIVE-Qualcomm, LIVE-VQC; ImageNet"
        return ScorerSpec(
            card=loaded.card(self.name, "MDTVSFA", training, "MIT; BSD-3-Clause", asdict(MixedHeadConfig())),
            frames=FrameRequest(EveryFrame(), None, is_streamed=True),
            outputs=("relative", *(DATA_SETS[name] for name in MixedHeadConfig().data_sets)),
            num_parameters=loaded.num_parameters,
        )


mdtvsfa = MdtvsfaFamily()
