"""ResNet-50, VGG-16 with Score-CAM, the head of VSFA and Algorithm 3 equal the golden values of their specification."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, SpecError
from kvq_batch.domain.frames import ClipTimes
from kvq_batch.domain.scorer import ModelOptions, ScorerSpec
from kvq_batch.features.chunks import SecondSampling
from kvq_batch.models import registry
from kvq_batch.models.backbones.imagenet import RESNET50, VGG16
from kvq_batch.models.backbones.memory_pooling import pool_frames
from kvq_batch.models.backbones.resnet import ResNet50, spatial_mean, spatial_std
from kvq_batch.models.backbones.vgg import Vgg16
from kvq_batch.models.checkpoints.networks import build_network, network_shapes
from kvq_batch.models.checkpoints.published_files import LoadedFiles
from kvq_batch.models.score_cam import scorer as score_cam_scorer
from kvq_batch.models.score_cam.family import saliency, similarity, vsfa_cnn_saliency
from kvq_batch.models.score_cam.network import ScoreCam, score_cam, weighted_map
from kvq_batch.models.score_cam.similarity import reduced_map, saliency_similarity
from kvq_batch.models.vsfa.config import VsfaConfig
from kvq_batch.models.vsfa.network import VsfaHead
from tests.goldens.study import deep_recipe
from tests.support.numerics import assert_close_to_scale

# Features of 50 layers in float32, against float64: at most 1.5e-5 of values up to 3.
LAYERS_RELATIVE = 2e-5


@cache
def golden() -> dict[str, NDArray[np.float64]]:
    with np.load(deep_recipe.FOLDER / "golden_deep.npz") as file:
        return dict(file)


@cache
def resnet() -> ResNet50:
    return build_network(ResNet50, deep_recipe.weights("resnet50"))


@cache
def vgg() -> Vgg16:
    return build_network(Vgg16, deep_recipe.weights("vgg16"))


def head() -> VsfaHead:
    tensors = {k: v for k, v in deep_recipe.weights("vsfa").items() if not k.startswith("ann.fc.")}
    return build_network(lambda: VsfaHead(VsfaConfig()), tensors)


@pytest.mark.parametrize(("net", "build"), [("resnet50", ResNet50), ("vgg16", Vgg16)])
def test_names_and_shapes_are_those_of_torchvision(net: str, build: type[torch.nn.Module]) -> None:
    published = {name: shape for name, shape in deep_recipe.layout(net).items() if shape}
    assert dict(network_shapes(build)) == published


@pytest.mark.parametrize("frame", deep_recipe.FRAMES)
def test_resnet_features_equal_the_golden_features(frame: str) -> None:
    seed, height, width, cell = deep_recipe.FRAMES[frame]
    x = deep_recipe.normalised(deep_recipe.rgb(seed, height, width, cell))
    assert np.allclose(
        [x.sum(dtype=np.float64), np.abs(x).sum(dtype=np.float64)], golden()[f"resnet.{frame}.input_sum"]
    )
    with torch.inference_mode():
        stages = resnet().stages(torch.from_numpy(x))
        mean, std = spatial_mean(stages[-1]), spatial_std(stages[-1])
        logits = resnet().fc(mean)[0, :8]
    for number, stage in enumerate(stages):
        flat = stage.double().flatten().numpy()
        # floor(i (n - 1) / 63), as the specification takes its 64 probes.
        found = flat[np.floor(np.arange(64) * (flat.size - 1) / 63).astype(int)]
        name = f"resnet.{frame}.stage{number}"
        assert_close_to_scale(found, golden()[f"{name}_probe"], LAYERS_RELATIVE, flat.max(), name)
        assert np.sqrt((flat**2).mean()) == pytest.approx(float(golden()[f"{name}_rms"]), rel=1e-5)
    assert_close_to_scale(mean[0], golden()[f"resnet.{frame}.mean"], LAYERS_RELATIVE)
    assert_close_to_scale(std[0], golden()[f"resnet.{frame}.std"], LAYERS_RELATIVE)
    assert_close_to_scale(logits, golden()[f"resnet.{frame}.logits8"], LAYERS_RELATIVE, 10)


@pytest.mark.parametrize("num_frames", [1, 5, 12, 40])
def test_vsfa_head_equals_the_golden_scores(num_frames: int) -> None:
    network, features = head().double(), torch.from_numpy(deep_recipe.vsfa_features(num_frames)).double()
    name = f"vsfa.T{num_frames}"
    quality = network.qualities(network.reduction(features))
    assert_close_to_scale(quality, golden()[f"{name}.q"], 1e-12)
    assert_close_to_scale(pool_frames(quality), golden()[f"{name}.pooled"], 1e-12)
    assert network(features).item() == pytest.approx(float(golden()[f"{name}.score"]), rel=1e-12)
    single = head()(torch.from_numpy(deep_recipe.vsfa_features(num_frames))).item()
    assert single == pytest.approx(float(golden()[f"{name}.score"]), abs=1e-6)


def test_drop_of_quality_is_remembered() -> None:
    steady = torch.full((60,), 0.6)
    drop = steady.clone()
    drop[30:33] = 0.1
    pooled, reference = pool_frames(drop), pool_frames(steady)
    assert torch.allclose(reference, steady)
    # Frames of the drop, 11 before (which see it coming) and 11 after (which remember it).
    assert (pooled[19:44] < 0.6).all()
    assert torch.equal(pooled[44:], reference[44:])


def test_score_cam_equals_the_golden_map() -> None:
    x = torch.from_numpy(deep_recipe.normalised(deep_recipe.rgb(512, 64, 64, 8)))
    with torch.inference_mode():
        found = score_cam(vgg(), x, num_masks=16)
        maps = vgg().activations(x)
        masks = torch.nn.functional.interpolate(maps, (64, 64), mode="bilinear", align_corners=False)[0]
    assert found.label == golden()["cam.s64.class"]
    assert_close_to_scale(found.weights, golden()["cam.s64.scores"][:16], 2e-5, 1.0)
    assert_close_to_scale(found.saliency, golden()["cam.s64.map16"], 2e-5)
    # All 512 masks, with the golden weights: 512 passes of the network would take 30 s.
    whole = weighted_map(masks, torch.from_numpy(golden()["cam.s64.scores"]))
    assert_close_to_scale(whole, golden()["cam.s64.map512"], 2e-5)


@pytest.fixture
def shared_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scorers share the networks of this module: VGG-16 has 550 MB."""

    def build(network: Callable[[], Any], tensors: Any, device: Any) -> Any:
        return vgg() if network is Vgg16 else resnet()

    monkeypatch.setattr(score_cam_scorer, "build_network", build)


def test_saliency_profile_and_map_are_golden(shared_networks: None) -> None:
    found = score_cam_scorer.SaliencyScorer(
        spec_of("saliency"), {VGG16: {}}, ModelOptions("saliency"), num_masks=16
    ).score([deep_recipe.rgb(512, 64, 64, 8)[None]])[0]
    assert found.features is not None
    assert found.saliency is not None
    assert_close_to_scale(found.features, golden()["cam.s64.colmean16"], 2e-5)
    cells = golden()["cam.s64.map16"].reshape(4, 16, 4, 16).mean((1, 3))
    assert_close_to_scale(found.saliency[0], cells / cells.mean(), 2e-5)


def test_saliency_is_compared_and_added(shared_networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cam = torch.from_numpy(golden()["cam.s224.map16"])
    monkeypatch.setattr(score_cam_scorer, "score_cam", lambda *_: ScoreCam(cam, torch.ones(1), 0))
    frame = deep_recipe.rgb(*deep_recipe.FRAMES["d224"])[None]
    tensors: dict[str, Any] = {VGG16: {}, RESNET50: {}}
    options = ModelOptions("saliency-similarity")
    (found,) = score_cam_scorer.SimilarityScorer(spec_of("saliency-similarity"), tensors, options).score([frame])
    expected, _ = saliency_similarity(golden()["resnet.d224.mean"].ravel().astype(np.float32), cam.numpy())
    assert found.outputs["similarity"] == pytest.approx(expected, abs=1e-6)
    (summed,) = score_cam_scorer.SaliencySumScorer(spec_of("vsfa-cnn-saliency"), tensors, options).score([frame])
    assert summed.features is not None
    with torch.inference_mode():
        maps = resnet()(torch.from_numpy(deep_recipe.normalised(frame[0])) + cam)
    assert_close_to_scale(summed.features, torch.cat([spatial_mean(maps), spatial_std(maps)], 1)[0], LAYERS_RELATIVE)


def spec_of(name: str) -> ScorerSpec:
    """Return the declaration of a model around no weights."""
    family = {"saliency": saliency, "saliency-similarity": similarity, "vsfa-cnn-saliency": vsfa_cnn_saliency}[name]
    return family.spec(LoadedFiles({}, ()))


@pytest.mark.parametrize("name", ["saliency", "saliency-similarity", "vsfa-cnn-saliency", "cnn-resnet50", "rapique"])
def test_model_without_weights_names_its_files(name: str) -> None:
    resnet = r"resnet50-0676ba61\.pth"
    file = {"saliency": r"vgg16-397923af\.pth", "cnn-resnet50": resnet, "rapique": resnet}
    expected = file.get(name, rf"vgg16-397923af\.pth .* and {resnet}")
    with pytest.raises(SpecError, match=f"needs {expected} .*torch.save.*BSD-3-Clause.*--weights "):
        registry.describe(ModelOptions(name))


def test_saliency_takes_one_frame_a_second() -> None:
    """STUDY_SPEC section 4.2: 29.97 frames per second are 30 for last frames and 29 for first frames."""
    clip = ClipTimes(np.arange(95) / 29.97, 29.97)
    assert SecondSampling().select(clip, "").tolist() == [29, 59, 89]
    assert SecondSampling(is_last=False).select(clip, "").tolist() == [0, 29, 58]
    with pytest.raises(DecodeError, match="needs a second: 30"):
        SecondSampling().select(ClipTimes(np.arange(20) / 29.97, 29.97), "")


def test_score_cam_skips_constant_masks() -> None:
    # Mask 25 of the 512 is flat in the golden case, and its weight is 0.
    flat = np.flatnonzero(golden()["cam.s64.act_min"] == golden()["cam.s64.act_max"])
    assert len(flat) == 25
    assert not golden()["cam.s64.scores"][flat].any()
    with torch.device("meta"):
        network = Vgg16()
    # Each tensor is one zero, seen in its whole shape.
    zeros = {name: torch.zeros(()).expand(shape) for name, shape in network_shapes(Vgg16).items()}
    network.load_state_dict(zeros, assign=True)
    with torch.inference_mode():
        found = score_cam(network, torch.zeros(1, 3, 32, 32))
    assert not found.saliency.any()
    assert not found.weights.any()


def test_similarity_equals_the_golden_cosines() -> None:
    deep, saliency = deep_recipe.similarity_inputs()
    assert_close_to_scale(reduced_map(saliency), golden()["alg3.small"])
    mean, cosines = saliency_similarity(deep, saliency)
    assert_close_to_scale(cosines, golden()["alg3.cosines"], 1e-12)
    assert mean == pytest.approx(float(golden()["alg3.mean"]), rel=1e-12)
    assert mean == pytest.approx(0.6185851, abs=1e-7)


def test_rapique_puts_the_mean_of_the_network_between_spatial_and_temporal_features() -> None:
    from kvq_batch.domain.scorer import ModelCard, ModelOptions, ScorerSpec
    from kvq_batch.models.rapique.family import nss
    from kvq_batch.models.rapique.scorer import RapiqueScorer

    spec = ScorerSpec(ModelCard("rapique", "1", "0" * 64, "trained", ""), nss.frames, has_score=False)
    scorer = RapiqueScorer(spec, deep_recipe.weights("resnet50"), ModelOptions("rapique"))
    pictures = np.stack([deep_recipe.rgb(*deep_recipe.FRAMES[frame][:1], 64, 64, 8) for frame in deep_recipe.FRAMES])
    statistics = np.arange(1836, dtype=np.float32)[None]
    (found,) = scorer.score([(statistics, pictures)])
    x = np.concatenate([deep_recipe.normalised(picture) for picture in pictures])
    with torch.inference_mode():
        expected = spatial_mean(resnet()(torch.from_numpy(x))).mean(0).numpy()
    assert found.features is not None
    np.testing.assert_allclose(found.features[1360:3408], expected, rtol=1e-4, atol=1e-5)
    assert np.delete(found.features, np.s_[1360:3408]).tolist() == statistics[0].tolist()
