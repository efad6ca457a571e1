"""Training of the coarse-to-fine network (SWINV2_SPEC sections 2.5, 4 and 5): initial weights, loss, files.

The paper gives neither sizes nor weights of the terms; they are those of the specification.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.tensors import Shape, Tensors
from kvq_batch.models.swinv2_ctf.checkpoint import FORMAT, CtfCheckpoint, tensor_shapes
from kvq_batch.models.swinv2_ctf.config import CtfConfig
from kvq_batch.models.swinv2_ctf.imagenet import load_imagenet
from kvq_batch.models.swinv2_ctf.network import RAW_SCALE, CtfNetwork, CtfOutput, normalise_pictures
from kvq_batch.training.group_losses import group_contrast, rank_in_groups, sample_contrast
from kvq_batch.training.losses import Losses, TensorBatch
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.samples import seed_of
from kvq_batch.training.settings import Initialisation, TrainSettings

_SWIN_STD = 0.02
_FIRST_SCALE = math.log(10.0)
_EMBEDDINGS = ("cls", "stage_embed", "pos_embed", "video_token", "time_embed")
# Labels are 0 to 1: a small network that is trained for hours, not days, starts from the middle.
_MIDDLE, _LAST_SCALE = 0.5, 0.1


class CtfArchitecture:
    """Coarse-to-fine networks; see `architectures.Architecture`."""

    loss_terms = ("quality", "contrast", "rank")

    def __init__(self, config: CtfConfig) -> None:
        self.config = config

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, tensor_shapes(self.config).values()))

    def check(self, settings: TrainSettings, recompute: bool) -> None:
        # A factor of up to 100 on the cosines is where SwinV2 breaks in half precision (section 5).
        if settings.precision != "fp32":
            raise SpecError("swinv2-ctf is trained in fp32. Set training.precision = 'fp32'.")
        if recompute:
            raise SpecError("swinv2-ctf cannot recompute blocks. Set machine.recompute = false.")

    def initial_tensors(self, settings: TrainSettings, start: Path | None, backbone: Path | None) -> dict[str, Tensor]:
        shapes = tensor_shapes(self.config)
        tensors = {name: _draw(name, shapes, settings.initialisation, settings.seed) for name in shapes}
        found: Tensors = {}
        if start is not None:
            loaded = FORMAT.load(start)
            found = FORMAT.check_tensors(loaded.tensors, self.config, str(start))
        elif backbone is not None:
            found = {f"spatial.{name}": array for name, array in load_imagenet(backbone, self.config.spatial).items()}
        return tensors | {name: torch.tensor(array) for name, array in found.items()}

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        return FORMAT.digest({name: tensor.numpy() for name, tensor in tensors.items()}, self.config)

    def trainable(self, tensors: Mapping[str, Tensor], settings: TrainSettings, recompute: bool) -> nn.Module:
        network = self._network(tensors)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = settings.dropout
        network.head.dropout = settings.dropout
        return network.train()

    def scoring(self, tensors: Mapping[str, Tensor], settings: TrainSettings) -> nn.Module:
        return self._network(tensors).eval()

    def _network(self, tensors: Mapping[str, Tensor]) -> CtfNetwork:
        with torch.device("meta"):
            network = CtfNetwork(self.config)
        network.load_state_dict(dict(tensors), assign=True)
        return network

    def prepare(self, clips: Tensor, settings: TrainSettings) -> Tensor:
        return normalise_pictures(clips)

    def scores(self, network: nn.Module, inputs: Tensor, settings: TrainSettings) -> Tensor:
        found: CtfOutput = network(inputs)
        return RAW_SCALE * found.scores.double()

    def losses(self, network: nn.Module, batch: TensorBatch, settings: TrainSettings, group: ProcessGroup) -> Losses:
        weights = settings.group_loss
        assert weights is not None
        found: CtfOutput = network(batch.clips)
        scores, labels = group.gather(found.scores).double(), group.gather(batch.labels)
        levels = torch.zeros_like(batch.labels, dtype=torch.int64) if batch.levels is None else batch.levels
        levels = group.gather(levels)
        terms: dict[str, Tensor] = {}
        if weights.quality:
            is_l1 = weights.quality_form == "l1"
            terms["quality"] = (scores - labels).abs().mean() if is_l1 else correlation_loss(scores, labels)
        if weights.contrast:
            contrast = group_contrast if weights.contrast_form == "halves" else sample_contrast
            terms["contrast"] = contrast(group.gather(found.features), levels, weights.temperature).double()
        if weights.rank:
            terms["rank"] = rank_in_groups(scores, labels, levels, weights.margin, weights.gap)
        total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        values["loss"] = float(total.detach())
        return Losses(total, values, RAW_SCALE * scores.detach())

    def update_rule(self, name: str) -> tuple[bool, bool]:
        return name.startswith("spatial."), not _is_free(name)

    def save(self, path: Path, card: ModelCard, tensors: Tensors) -> ModelCard:
        return FORMAT.save(path, CtfCheckpoint(card, self.config, tensors))

    def load_card(self, path: Path) -> tuple[ModelCard, Tensors]:
        loaded = FORMAT.load(path)
        return loaded.card, loaded.tensors


def correlation_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (1 - Pearson) / 2 of scores and labels [n]; 0.5 without a gradient if one of them is constant."""
    found, expected = scores - scores.mean(), labels - labels.mean()
    norm = torch.linalg.vector_norm(found) * torch.linalg.vector_norm(expected)
    if not norm > 0:
        return scores.sum() * 0 + 0.5
    loss: Tensor = (1 - (found * expected).sum() / norm) / 2
    return loss


def _is_free(name: str) -> bool:
    """Return whether a tensor is not decayed: norms, biases, scales, position biases, embeddings (section 5)."""
    leaf = name.rsplit(".", 1)[-1]
    return (
        leaf in ("bias", "in_proj_bias", "logit_scale", *_EMBEDDINGS)
        or ".cpb_mlp." in name
        or _is_norm(name.rsplit(".", 1)[0])
    )


def _is_norm(path: str) -> bool:
    # The stem's norm has the index of torchvision's name.
    return path.rsplit(".", 1)[-1].startswith("norm") or path == "spatial.features.0.2"


def _draw(name: str, shapes: Mapping[str, Shape], scheme: Initialisation, seed: int) -> Tensor:
    """Return the initial value of a tensor, drawn from its own name.

    "published" (section 2.5): matrices with standard deviation 0.02, and the norms of SwinV2's blocks 0, so that each
    block starts as identity. "fan-in": matrices with standard deviation 1 / sqrt(fan_in), all norms 1, and scores start
    at 0.5. With norms that start at 0, features of all levels were still equal after 80 steps of a toy training; with
    1 the contrast had halved.
    """
    path, _, leaf = name.rpartition(".")
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    tensor = torch.zeros(shapes[name])
    if leaf == "logit_scale":
        return tensor.fill_(_FIRST_SCALE)
    if _is_norm(path):
        is_of_block = path.startswith("spatial.") and path.endswith((".norm1", ".norm2"))
        starts_at_zero = is_of_block and scheme == "published"
        return tensor.fill_(float(leaf == "weight" and not starts_at_zero))
    if leaf in ("bias", "in_proj_bias"):
        return tensor.fill_(_MIDDLE if path == "head.fc2" and scheme == "fan-in" else 0.0)
    std = _SWIN_STD
    if scheme == "fan-in" and leaf not in _EMBEDDINGS:
        std = math.prod(shapes[name][1:]) ** -0.5 * (_LAST_SCALE if path == "head.fc2" else 1.0)
    elif path == "spatial.features.0.0":
        # The convolution of the patches, as torch draws it.
        bound = math.prod(shapes[name][1:]) ** -0.5
        return tensor.uniform_(-bound, bound, generator=generator)
    return nn.init.trunc_normal_(tensor, std=std, generator=generator)
