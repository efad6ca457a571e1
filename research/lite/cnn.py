"""Baseline: a plain convolutional network with at most as many parameters as KVQ-Lite, trained in the same way.

Input (RGB and bands of detail), views, losses, optimiser, averaging and selection of weights are the same. The network
has no windows and no saliency, and its score is the mean of its texture map. Its weights are not saved.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.embedding import with_energy_bands
from kvq_batch.models.kvq.network import KvqMaps, KvqNetwork
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.training.architectures import architecture_of
from kvq_batch.training.frame_files import RenditionFiles
from kvq_batch.training.losses import TensorBatch, compute_losses
from kvq_batch.training.optimisation import Optimisation
from kvq_batch.training.process_group import SingleProcess
from kvq_batch.training.samples import batch_indices, rendition_sets, seed_of, split_samples
from kvq_batch.training.settings import TrainSettings
from kvq_batch.training.validation import Validation, validate

WIDTHS = (32, 64, 128, 256)
# Their product is 32, so a cell of the texture map is a fragment of the frame.
_STRIDES = (4, 2, 2, 2)


class Stage(nn.Module):
    """Strided convolution, norm over channels, and residual convolution: [B, C, H, W] -> [B, C', H/s, W/s]."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.strided = nn.Conv2d(num_in, num_out, 2 * stride - 1, stride, stride - 1)
        self.norm = nn.LayerNorm(num_out)
        self.refined = nn.Conv2d(num_out, num_out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(x)
        x = F.gelu(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return x + F.gelu(self.refined(x))


class PlainCnn(nn.Module):
    """CNN with the output of a KVQ network and saliency 1, so that the same losses and validation apply.

    The frames of a slot are channels of its input.
    """

    def __init__(self, config: KvqConfig, dropout: float, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        widths = (config.patch[0] * config.input_channels, *WIDTHS)
        self.stages = nn.Sequential(
            *(Stage(n_in, n_out, step) for n_in, n_out, step in zip(widths, WIDTHS, _STRIDES, strict=False))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTHS[-1], 1)

    def forward(self, clips: Tensor) -> KvqMaps:
        """Return the maps of normalised clips [B, 3, T, H, W]; texture is [B, slots, H / 32, W / 32]."""
        x = with_energy_bands(clips, self.config)
        batch, channels, frames, height, width = x.shape
        slot = self.config.patch[0]
        slots = frames // slot
        # [B, C, D * slot, H, W] -> [B * D, slot * C, H, W]
        x = x.view(batch, channels, slots, slot, height, width).permute(0, 2, 3, 1, 4, 5)
        x = x.reshape(batch * slots, slot * channels, height, width).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, self.compute_dtype is torch.bfloat16):
            x = self.stages(x)
        cells = self.head(self.dropout(x.float().permute(0, 2, 3, 1)))[..., 0]
        texture = cells.view(batch, slots, *cells.shape[1:])
        zeros = torch.zeros_like(texture)
        return KvqMaps(texture, torch.ones_like(texture), zeros, zeros[:, None], zeros[..., None])


@dataclass(frozen=True, slots=True)
class Trained:
    """The network with the best averaged weights, and facts about its training."""

    network: PlainCnn
    facts: dict[str, Any]


def train_cnn(
    clips: RenditionFiles,
    settings: TrainSettings,
    report: Callable[[int, float, Validation | None], None] = lambda step, loss, found: None,
) -> Trained:
    """Train on the split "train" of `clips`; call `report` with (steps done, loss, validation or None) after each step.

    Raises:
        SpecError: samples that cannot be trained on, or a term of the loss that this network does not support.
        FatalError: the training diverged.
    """
    if settings.loss.lpc:
        raise SpecError("The CNN does not support loss.lpc. Set it to 0.")
    started = time.monotonic()
    split = split_samples(clips.samples, settings.scale, settings.validation_share, settings.seed)
    renditions = rendition_sets(clips.samples, split.train, settings.renditions)
    torch.manual_seed(seed_of(settings.seed, "weights"))
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    config = settings.config
    assert isinstance(config, KvqConfig)
    network, scoring = PlainCnn(config, settings.dropout, dtype), PlainCnn(config, 0.0, dtype).eval()
    # A PlainCnn has what the loss uses of a KVQ network: maps of clips.
    as_kvq = cast(KvqNetwork, network)
    optimisation = Optimisation(network, settings.optimiser, settings.steps, architecture_of(config).update_rule)
    group = SingleProcess()

    def scores(pixels: Tensor) -> Tensor:
        maps: KvqMaps = scoring(normalise(pixels))
        return maps.scores()

    best: Validation | None = None
    kept: dict[str, Tensor] = {}
    for step in range(settings.steps):
        torch.manual_seed(seed_of(settings.seed, "dropout", step))
        indices = batch_indices(split.train, settings.batch_size, step, settings.seed, renditions).tolist()
        losses = compute_losses(as_kvq, _batch(clips, indices, settings, step), settings.loss, settings.cube, group)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimisation.update(step, group)
        found = None
        if step + 1 == settings.steps or (step + 1) % settings.validate_every == 0:
            scoring.load_state_dict(optimisation.ema_params)
            held_out = split.validation
            found = validate(scores, torch.device("cpu"), clips, held_out, settings.batch_size, step + 1, group)
            if best is None or found.agreement > best.agreement:
                best, kept = found, {name: value.clone() for name, value in optimisation.ema_params.items()}
        report(step + 1, losses.terms["loss"], found)
    assert best is not None
    scoring.load_state_dict(kept)
    facts = {
        "parameters": sum(parameter.numel() for parameter in scoring.parameters()),
        "steps": settings.steps,
        "best_step": best.step,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "precision": settings.precision,
        "validation_srcc": best.srcc,
        "validation_plcc": best.plcc,
        "train_s": round(time.monotonic() - started, 1),
    }
    return Trained(scoring, facts)


def cnn_scores(network: PlainCnn, clips: RenditionFiles) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores [n] of the fixed views of all clips, and texture maps [n, row, column], means over slots."""
    scores, textures = [], []
    for index in range(len(clips.samples)):
        with torch.inference_mode():
            maps = network(normalise(torch.from_numpy(clips.read([index], None).clips)))
        scores.append(float(maps.scores()[0]))
        textures.append(maps.texture[0].double().mean(0).numpy())
    return np.array(scores), np.stack(textures)


def _batch(clips: RenditionFiles, indices: list[int], settings: TrainSettings, step: int) -> TensorBatch:
    """Return the views of these samples that a training of KVQ-Lite with these settings uses at this step."""
    views = clips.read(indices, seed_of(settings.seed, "view", step))
    low, high = settings.scale
    labels = torch.from_numpy((views.labels - low) / (high - low))
    cells = None if views.cells is None else torch.from_numpy((views.cells - low) / (high - low))
    return TensorBatch(normalise(torch.from_numpy(views.clips)), labels, cells, settings.renditions)
