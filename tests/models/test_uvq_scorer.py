"""UVQ, BVQA-2022 and PVQ as models of the registry: files, frames of each second, and pooling."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.bvqa.head import NUM_FEATURES, score_features
from kvq_batch.models.checkpoints.published_files import PublishedFile
from kvq_batch.models.uvq.family import FILES_10, FILES_15
from kvq_batch.models.uvq.scorer import SecondsPooler, Uvq10Scorer, Uvq15Scorer, bordered, landscape
from tests.goldens.swin import peers_recipe


def write_files(folder: Path, files: tuple[PublishedFile, ...]) -> str:
    """Write zeros in the shapes and under the names that Google publishes, with a counter: the file stores one zero."""
    for file in files:
        state = {name: torch.zeros(()).expand(shape) for name, shape in file.shapes().items()}
        torch.save(state | {"bn.num_batches_tracked": torch.tensor(0)}, folder / file.names[0])
    return str(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uvq-1.5", r"content_net\.pth, distortion_net\.pth, aggregation_net\.pth .*google/uvq.*Apache-2\.0\).*FOLDER"),
        ("uvq-1.0", r"compressionnet_pytorch_statedict\.pt, .*ytugc20s_4_avgpool_.*google/uvq.*Apache-2\.0\).*FOLDER"),
        ("bvqa-2022", r"cannot run: .*DataParallel-00008\.pt.*SLOWFAST_8x8_R50\.pkl.*Apache-2\.0\).*--weights"),
        ("pvq", r"cannot run: .*RoIPoolModel-fit\.10\.bs\.120\.pth.*baidut/PatchVQ.*UT Austin\).*--weights"),
    ],
)
def test_model_without_weights_names_its_files(name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as error:
        registry.describe(ModelOptions(name))
    assert str(error.value).count(". ") == 0, "one sentence"


def test_missing_network_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, FILES_15[2:])
    with pytest.raises(SpecError, match=r"needs content_net\.pth, distortion_net\.pth \(.*lacks them"):
        registry.describe(ModelOptions("uvq-1.5", str(tmp_path)))


def test_frame_of_15_is_split_into_patches(tmp_path: Path) -> None:
    scorer = registry.build(ModelOptions("uvq-1.5", write_files(tmp_path, FILES_15)))
    assert isinstance(scorer, Uvq15Scorer)
    assert scorer.spec.card.version == "unverified"
    seen: dict[str, list[Tensor]] = {"content": [], "distortion": []}
    scorer._content = recorder(seen["content"], torch.zeros(1, 8, 8, 128))  # type: ignore[assignment]
    scorer._distortion = means((8, 8, 128), seen["distortion"])  # type: ignore[assignment]
    scorer._aggregation = lambda content, distortion: distortion[:, ::8, ::8, 0].flatten()[-1:]  # type: ignore[assignment]
    frames = np.zeros((2, 1080, 1920, 3), np.uint8)
    frames[0, 720:, 1280:] = 255
    (found,) = scorer.score([frames])
    assert [tuple(x.shape) for x in seen["content"]] == [(1, 3, 1080, 1920)] * 2
    assert [tuple(x.shape) for x in seen["distortion"]] == [(1, 3, 360, 640)] * 18
    # The last patch of the first frame is white, the second frame is black.
    assert found.partial is not None
    assert found.partial.tolist() == [[1.0], [-1.0]]


def test_second_of_10_is_split_into_patches(tmp_path: Path) -> None:
    scorer = registry.build(ModelOptions("uvq-1.0", write_files(tmp_path, FILES_10)))
    assert isinstance(scorer, Uvq10Scorer)
    assert scorer.spec.frames.stream_group == 5
    seen: list[Tensor] = []
    scorer._content = lambda x: (torch.zeros(1, 16, 16, 100) + x.mean(), None)  # type: ignore[assignment]
    distortion, compression = means((8, 8, 100)), means((4, 4, 100), seen)
    scorer._distortion = lambda x: (distortion(x), None)  # type: ignore[assignment]
    scorer._compression = lambda x: (compression(x), None)  # type: ignore[assignment]
    scorer._heads = [lambda parts, n=n: n + parts[0][0, ::4, ::4, 0].flatten()[-1] for n in range(5)]  # type: ignore[misc]
    frames = np.zeros((7, 720, 1280, 3), np.uint8)
    frames[4, 540:, 960:] = 255
    (found,) = scorer.score([frames])
    assert [tuple(x.shape) for x in seen] == [(1, 3, 5, 180, 320)] * 32
    # A fifth of the last patch of the first second is white. The heads add 0..4; the last second has two frames.
    assert found.partial is not None
    assert found.partial == pytest.approx(np.array([[2 - 0.6, 5], [2 - 1, 2]]), abs=1e-6)
    pooled = registry.build_pooler(ModelOptions("uvq-1.0")).pool(found.partial)
    assert pooled.raw_score == pytest.approx(1.4)
    assert pooled.slot_scores is not None
    assert pooled.slot_scores.tolist() == pytest.approx([1.4])


def recorder(seen: list[Tensor], result: Tensor) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        seen.append(x)
        return result

    return call


def means(shape: tuple[int, ...], seen: list[Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    """Return a network whose features are the mean of its input everywhere."""

    def call(x: Tensor) -> Tensor:
        if seen is not None:
            seen.append(x)
        return torch.zeros(1, *shape) + x.mean()

    return call


def test_short_video_has_one_second() -> None:
    pooled = SecondsPooler(5).pool(np.array([[3.0, 2.0]], np.float32))
    assert pooled.raw_score == 3
    assert SecondsPooler().pool(np.array([[1.0], [2.0]], np.float32)).raw_score == 1.5


def test_upright_frames_are_turned_left_or_bordered() -> None:
    frame = torch.zeros(64, 32, 3, dtype=torch.uint8)
    frame[:, 16:] = 200  # the right half becomes the upper half
    turned = landscape(frame)
    assert turned.shape == (1, 3, 1080, 1920)
    assert (turned[..., :400, :] == 200).all()
    assert (turned[..., 680:, :] == 0).all()
    framed = bordered(torch.full((64, 32, 3), 90, dtype=torch.uint8))
    assert framed.shape == (1, 3, 720, 1280)
    assert (framed[..., 460:820] == 90).all()
    assert not framed[..., :460].any()
    assert not framed[..., 820:].any()


@pytest.mark.parametrize("data_sets", ["KCLN", "C"])
def test_bvqa_head_scores_feature_files(data_sets: str, tmp_path: Path) -> None:
    variant = f"bvqa2022_{data_sets.lower()}"
    path = tmp_path / f"model_{data_sets}"
    torch.save({k: torch.from_numpy(v) for k, v in peers_recipe.weights(variant).items()}, path)
    found = score_features(peers_recipe.frame_features(40, NUM_FEATURES), path, data_sets)
    relative, mapped, *aligned = np.load(peers_recipe.FOLDER / "golden.npz")[f"{variant}.seeded.T40"]
    assert found.raw_score == pytest.approx(mapped, abs=1e-6)
    assert list(found.outputs.values()) == pytest.approx([relative, *aligned], abs=1e-5)
    with pytest.raises(SpecError, match=r"\(40, 4096\), expected \(T, 4608\)"):
        score_features(np.zeros((40, 4096)), path)
