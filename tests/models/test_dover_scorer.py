"""DOVER as a model of the registry: its files, its views, and golden scores of networks that are built from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.dover.config import DOVER, ConvNextConfig, DoverConfig, fuse
from kvq_batch.models.dover.family import OUTPUTS, DoverFamily, frame_requests
from tests.goldens.fastvqa import golden_recipe
from tests.support.published_networks import GOLDEN, TOLERANCES, assert_segments_are_official, tiny_config

CASE, CONV_CASE = "t_fixed", "conv1"
VARIANT, VERSION, DIMS, DEPTHS, HIDDEN, *_ = golden_recipe.CONV_CASES[CONV_CASE]
SMALL = DoverConfig(
    tiny_config("tiny", False), ConvNextConfig(VERSION, DIMS, DEPTHS), HIDDEN, "small.pth", 1, 8, fragments=(5, 3)
)


def write_published(path: Path) -> None:
    """Write the golden tensors of both branches as the authors save them: a bare state dict, with index buffers."""
    technical = {
        name.replace("fragments_", "technical_").replace("vqa_", "technical_"): value
        for name, value in golden_recipe.weights("tiny").items()
    }
    weights = technical | golden_recipe.weights(VARIANT)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    state["technical_backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(392, 392).long()
    state["aesthetic_backbone.head.weight"] = torch.zeros(1000, 64)
    torch.save(state, path)


@pytest.mark.parametrize(("name", "file"), [("dover", r"DOVER\.pth"), ("dover-mobile", r"DOVER-Mobile\.pth")])
def test_model_without_weights_names_the_file(name: str, file: str) -> None:
    with pytest.raises(SpecError, match=f"needs {file} .*torch.save.*VQAssessment/DOVER.*S-Lab.*--weights PATH"):
        registry.describe(ModelOptions(name))
    assert "needs weights" in registry.summary(name)


def test_scores_of_a_published_file_are_golden(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    write_published(path)
    family = DoverFamily("small", "Small", SMALL)
    scorer = family.build(ModelOptions("small", str(path)))
    assert scorer.spec == family.describe(ModelOptions("small", str(path)))
    golden = np.load(GOLDEN)
    seeds, *size = golden_recipe.MODEL_CASES[CASE][2:]
    conv_seeds, *conv_size = golden_recipe.CONV_CASES[CONV_CASE][-4:]
    fragments, frames = video(seeds[0], *size), video(conv_seeds[0], *conv_size)
    (found,) = scorer.score([(fragments, frames)])
    technical, aesthetic = float(golden[f"{CASE}.score"][0]), float(golden[f"conv.{CONV_CASE}.score"][0])
    assert tuple(found.outputs) == OUTPUTS
    assert found.outputs["technical_raw"] == pytest.approx(technical, abs=TOLERANCES["score"])
    assert found.outputs["aesthetic_raw"] == pytest.approx(aesthetic, abs=TOLERANCES["score"])
    of_technical, of_aesthetic, overall = fuse(found.outputs["technical_raw"], found.outputs["aesthetic_raw"])
    assert found.raw_score == found.outputs["overall"] == overall
    assert (found.outputs["technical"], found.outputs["aesthetic"]) == (of_technical, of_aesthetic)


def video(seed: int, *size: int) -> NDArray[np.uint8]:
    """Return a golden clip as a decoder returns it, uint8 [T, H, W, 3]."""
    return np.ascontiguousarray(golden_recipe.video(seed, *size).transpose(1, 2, 3, 0))


def test_weights_of_another_variant_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    write_published(path)
    with pytest.raises(CheckpointError, match="missing"):
        registry.describe(ModelOptions("dover", str(path)))


def test_views_are_those_of_the_official_samplers() -> None:
    technical, aesthetic = frame_requests(DOVER)
    assert (technical.sampling.num_frames, technical.fragments, technical.size) == (96, (7, 7), (224, 224))
    assert (aesthetic.sampling.num_frames, aesthetic.fragments, aesthetic.size) == (32, None, (224, 224))
    assert aesthetic.resize == "bilinear"
    assert_segments_are_official(technical.sampling, "dover_t")
    assert_segments_are_official(aesthetic.sampling, "dover_a")
