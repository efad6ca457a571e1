"""FAST-VQA as a model of the registry: its files, its frames, and the scores of a network that is built from a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.fastvqa.config import FAST_VQA, FAST_VQA_M, FASTERVQA, FASTERVQA_MS, FASTERVQA_MT, FastVqaConfig
from kvq_batch.models.fastvqa.family import FastVqaFamily, frame_request
from kvq_batch.models.fastvqa.network import FastVqaNetwork
from tests.goldens.fastvqa import golden_recipe
from tests.support.published_networks import GOLDEN, assert_segments_are_official, tiny_config, with_weights

NAMES = ("fast-vqa", "fast-vqa-m", "fastervqa", "fastervqa-ms", "fastervqa-mt")
VARIANTS = {
    "FAST-VQA": FAST_VQA,
    "FAST-VQA-M": FAST_VQA_M,
    "FasterVQA": FASTERVQA,
    "FasterVQA-MS": FASTERVQA_MS,
    "FasterVQA-MT": FASTERVQA_MT,
}
# Two clips of 4 frames of 2x2 patches, with the reduced network of the goldens.
SMALL = FastVqaConfig(tiny_config("tiny", True), 2, 4, fragments=(2, 2), mean=-1.0, std=2.0, weights_file="small.pth")


def write_published(path: Path, **extra: object) -> None:
    """Write the golden tensors as the authors' training saves them: with prefixes, index buffers and its metrics."""
    state = {f"module.{name}": torch.from_numpy(value) for name, value in golden_recipe.weights("tiny").items()}
    for name, shape, kind in golden_recipe.layout("golden_keys.tsv", "tiny"):
        if kind == "buffer":
            state[f"module.{name}"] = torch.zeros(shape, dtype=torch.int64)
    state["module.fragments_backbone.total_ops"] = torch.zeros(1)
    torch.save({"state_dict": state, "validation_results": [np.float64(0.9), 0.8]} | extra, path)


@pytest.mark.parametrize("name", NAMES)
def test_model_without_weights_names_the_file(name: str) -> None:
    for weights in (None, "untrained"):
        with pytest.raises(SpecError, match=r"FAST_VQA_\w+\.pth \(.* saved by torch\.save") as error:
            registry.describe(ModelOptions(name, weights))
        assert "--weights PATH" in str(error.value)
        assert "MIT" in str(error.value)
    with pytest.raises(CheckpointError, match="cannot be read"):
        registry.describe(ModelOptions(name, "nowhere.pth"))


def test_scores_of_a_published_file_are_those_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    write_published(path)
    family = FastVqaFamily("small", "Small", SMALL)
    scorer = family.build(ModelOptions("small", str(path)))
    assert scorer.spec == family.describe(ModelOptions("small", str(path)))
    assert scorer.spec.card.version == "unverified"
    request = scorer.spec.frames
    assert (request.size, request.fragments, request.sampling.num_frames) == ((64, 64), (2, 2), 8)
    videos = [np.ascontiguousarray(golden_recipe.video(seed, 8, 64, 64).transpose(1, 2, 3, 0)) for seed in (1, 2)]
    found = scorer.score(videos)
    assert found[1] == scorer.score(videos[1:])[0]
    network = with_weights(lambda: FastVqaNetwork(SMALL.network), golden_recipe.weights("tiny"))
    for video, prediction in zip(videos, found, strict=True):
        clips = [golden_recipe.normalise(video[start : start + 4].transpose(3, 0, 1, 2)) for start in (0, 4)]
        with torch.inference_mode():
            expected = float(network(torch.from_numpy(np.stack(clips))).mean())
        assert prediction.raw_score == pytest.approx(expected, abs=1e-5)
        assert prediction.outputs == {"quality": pytest.approx(1 / (1 + np.exp(-(expected + 1) / 2)), abs=1e-5)}


def test_weights_of_another_variant_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    write_published(path)
    other = FastVqaFamily("m", "M", FastVqaConfig(tiny_config("tiny_m", False)))
    with pytest.raises(CheckpointError, match="not expected"):
        other.describe(ModelOptions("m", str(path)))
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match="there is no 'state_dict'"):
        other.describe(ModelOptions("m", str(path)))


def test_variants_of_one_file_have_their_own_model_ids(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    write_published(path)
    shorter = FastVqaConfig(SMALL.network, 1, 8, num_segments=2, fragments=(2, 2))
    ids = {
        FastVqaFamily("small", "Small", config).describe(ModelOptions("small", str(path))).card.model_id
        for config in (SMALL, shorter)
    }
    assert len(ids) == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_quality_has_the_constants_of_the_variant(variant: str) -> None:
    from kvq_batch.models.fastvqa.config import sigmoid

    golden = np.load(GOLDEN)
    config = VARIANTS[variant]
    expected = golden["rescale.out"][golden["rescale.variants"].tolist().index(variant)]
    found = [sigmoid((score - config.mean) / config.std) for score in golden["rescale.scores"].tolist()]
    assert np.abs(np.array(found) - expected).max() <= 1e-12


@pytest.mark.parametrize(
    ("variant", "sampler"),
    [("FAST-VQA", "b_test"), ("FAST-VQA-M", "m_test"), ("FasterVQA", "faster"), ("FasterVQA-MT", "mt")],
)
def test_frames_are_segments_of_the_official_sampler(variant: str, sampler: str) -> None:
    assert_segments_are_official(frame_request(VARIANTS[variant]).sampling, sampler)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["FasterVQA-MT", "FasterVQA-MS"])
@torch.inference_mode()
def test_full_network_is_golden(variant: str) -> None:
    weights, sampler, length, height, width, fragments, aligned, _, film = golden_recipe.E2E_CASES[variant]
    golden = np.load(GOLDEN)
    _, rows, columns = golden_recipe.e2e_offsets(variant)
    indices = golden[f"e2e.{variant}.idx"].tolist()
    assert sampler in golden_recipe.FRAGMENT_FRAMES
    frames = np.stack([golden_recipe.frame(film, index, height, width) for index in indices])
    assert length > max(indices)
    spliced = np.zeros((len(frames), 32 * fragments, 32 * fragments, 3), np.uint8)
    for row in range(fragments):
        for column in range(fragments):
            for group in range(len(frames) // aligned):
                times = slice(group * aligned, (group + 1) * aligned)
                top = height // fragments * row + rows[row, column, group]
                left = width // fragments * column + columns[row, column, group]
                spliced[times, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = frames[
                    times, top : top + 32, left : left + 32
                ]
    clip = golden_recipe.normalise(spliced.transpose(3, 0, 1, 2))[None]
    network = with_weights(lambda: FastVqaNetwork(VARIANTS[variant].network), golden_recipe.weights(weights))
    quality = network(torch.from_numpy(clip))
    assert np.abs(quality[:, None].numpy() - golden[f"e2e.{variant}.map"]).max() <= 2e-4
    assert abs(float(quality.mean()) - float(golden[f"e2e.{variant}.score"][0])) <= 5e-5
