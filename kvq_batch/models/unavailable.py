"""Models of the literature that are known by name and cannot run: a job that names one is rejected with the reason.

No other model replaces them.
"""

from dataclasses import dataclass

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec


@dataclass(frozen=True, slots=True)
class UnavailableFamily:
    """A `ModelFamily` (models/registry.py) that rejects every job. `reason` completes "Model X cannot run: "."""

    name: str
    summary: str
    reason: str

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Reject the job. Raises: SpecError: always, with the reason."""
        raise SpecError(f"Model {self.name!r} cannot run: {self.reason}")

    def build(self, options: ModelOptions) -> Scorer:
        """Reject the job. Raises: SpecError: always, with the reason."""
        raise SpecError(f"Model {self.name!r} cannot run: {self.reason}")


bvqa_2022 = UnavailableFamily(
    "bvqa-2022",
    "BVQA-2022 (TCSVT 2022): only its head, for features that were computed elsewhere; cannot score videos",
    "it needs DataParallel-00008.pt (quality-aware ResNet-50, saved by torch.save, from a drive that "
    "zwx8981/TCSVT-2022-BVQA on GitHub links to, Apache-2.0) and SLOWFAST_8x8_R50.pkl (a pickle of Caffe2, from the "
    "model zoo of facebookresearch/SlowFast on GitHub, Apache-2.0), and the network of the second one is not part of "
    "this package, so --weights has no effect: compute features with the authors' code and score them with "
    "kvq_batch.models.bvqa.head.score_features, or choose another model.",
)
pvq = UnavailableFamily(
    "pvq",
    "PVQ (CVPR 2021): known by name only, because its trained head is not published; cannot score videos",
    "it needs RoIPoolModel-fit.10.bs.120.pth and fastai-r3d18_K_200ep.pth (pickles of fastai 2.0.18, from the releases "
    "of baidut/PatchVQ on GitHub, under the notice of UT Austin), which only that library loads, and a trained head "
    "that is not published, so --weights has no effect: choose another model.",
)
