"""Models that see every frame: the files, golden features and scores, and chunks of VSFA, VSFA_CNN and MDTVSFA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import ScoreError, SpecError
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.models import registry
from kvq_batch.models.vsfa.scorer import sum_of_features
from tests.goldens.study import deep_recipe
from tests.goldens.swin import peers_recipe

# Features of 50 layers in float32, against float64: at most 1.5e-5 of values up to 3.
TOLERANCE = 6e-5
NAMES = ("vsfa", "vsfa-cnn", "mdtvsfa")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with files of seeded weights, as the authors save them."""
    folder = tmp_path_factory.mktemp("weights")
    backbone = {name: torch.from_numpy(value) for name, value in deep_recipe.weights("resnet50").items()}
    backbone["bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save(backbone, folder / "resnet50-0676ba61.pth")
    for name, tensors in (("VSFA", deep_recipe.weights("vsfa")), ("MDTVSFA", peers_recipe.weights("mdtvsfa"))):
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / f"{name}.pt")
    return str(folder)


@pytest.fixture(scope="module")
def vsfa_cnn(weights: str) -> Scorer:
    return registry.build(ModelOptions("vsfa-cnn", weights))


def golden_frame(name: str) -> NDArray[np.uint8]:
    return deep_recipe.rgb(*deep_recipe.FRAMES[name])


@pytest.mark.parametrize("name", NAMES)
def test_model_without_weights_names_its_files(name: str) -> None:
    files = {"vsfa": r" and VSFA\.pt .*MIT", "mdtvsfa": r" and MDTVSFA\.pt .*MIT", "vsfa-cnn": ""}[name]
    with pytest.raises(
        SpecError, match=rf"needs resnet50-0676ba61\.pth .*torch\.save.*BSD-3-Clause\){files}.*--weights "
    ):
        registry.describe(ModelOptions(name))


def test_missing_head_is_named(weights: str, tmp_path: Path) -> None:
    (tmp_path / "resnet50-0676ba61.pth").symlink_to(Path(weights) / "resnet50-0676ba61.pth")
    with pytest.raises(SpecError, match=r"needs VSFA\.pt .*lidq92/VSFA.*lacks it"):
        registry.describe(ModelOptions("vsfa", str(tmp_path)))


def test_mean_features_are_golden(vsfa_cnn: Scorer) -> None:
    spec = vsfa_cnn.spec
    assert (spec.num_features, spec.has_score, spec.is_streamed, spec.frames.size) == (4096, False, True, None)
    golden = np.load(deep_recipe.FOLDER / "golden_deep.npz")
    frame = golden_frame("d97x131")
    (chunk,) = vsfa_cnn.score([np.stack([frame, frame])])
    assert chunk.partial is not None
    found = registry.build_pooler(ModelOptions("vsfa-cnn")).pool(chunk.partial).features
    assert found is not None
    expected = np.concatenate([golden["resnet.d97x131.mean"], golden["resnet.d97x131.std"]]).ravel()
    assert np.abs(found - expected).max() <= TOLERANCE


def test_sums_do_not_depend_on_chunks() -> None:
    rows = torch.from_numpy(deep_recipe.vsfa_features(40))
    whole = sum_of_features(iter(rows[:, None]))
    parts = [sum_of_features(iter(part[:, None])) for part in (rows[:1], rows[1:14], rows[14:])]
    assert torch.equal(whole, torch.cat(parts).sum(0, keepdim=True))
    assert np.allclose(whole[0, :-1], rows.double().sum(0), rtol=0, atol=40 * 2**-25)
    assert whole[0, -1] == 40


def test_reduced_features_do_not_depend_on_chunks(weights: str) -> None:
    scorer = registry.build(ModelOptions("vsfa", weights))
    frames = np.stack([deep_recipe.rgb(seed, 40, 48, 8) for seed in (1, 2, 3)])
    whole, first, rest = (found.partial for found in scorer.score([frames, frames[:1], frames[1:]]))
    assert whole is not None
    assert first is not None
    assert rest is not None
    assert whole.shape == (3, 128)
    assert np.array_equal(whole, np.concatenate([first, rest]))


def test_vsfa_scores_are_golden(weights: str) -> None:
    golden = np.load(deep_recipe.FOLDER / "golden_deep.npz")
    pooler = registry.build_pooler(ModelOptions("vsfa", weights))
    head = deep_recipe.weights("vsfa")
    for length in (1, 12, 40):
        reduced = deep_recipe.vsfa_features(length) @ head["ann.fc0.weight"].T + head["ann.fc0.bias"]
        assert pooler.pool(reduced).raw_score == pytest.approx(float(golden[f"vsfa.T{length}.score"]), abs=1e-6)


def test_mdtvsfa_scores_are_golden(weights: str) -> None:
    golden = np.load(peers_recipe.FOLDER / "golden.npz")
    pooler = registry.build_pooler(ModelOptions("mdtvsfa", weights))
    head = peers_recipe.weights("mdtvsfa")
    for length in (1, 12, 40):
        features = peers_recipe.frame_features(length, 4096)
        found = pooler.pool(features @ head["dimemsion_reduction.weight"].T + head["dimemsion_reduction.bias"])
        relative, mapped, *aligned = golden[f"mdtvsfa.seeded.T{length}"]
        assert found.raw_score == pytest.approx(mapped, abs=1e-6)
        assert list(found.outputs.values()) == pytest.approx([relative, *aligned], abs=1e-5)
    assert list(found.outputs) == list(registry.describe(ModelOptions("mdtvsfa", weights)).outputs)


def test_frames_of_one_cell_are_rejected(vsfa_cnn: Scorer) -> None:
    with pytest.raises(ScoreError, match="32 x 16 pixels") as error:
        vsfa_cnn.score([np.zeros((1, 16, 32, 3), np.uint8)])
    assert error.value.permanent
