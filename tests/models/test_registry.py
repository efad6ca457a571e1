"""Model registry: built-in models, models of other packages, and errors of unknown or broken ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry

FAST_VQA = ["fast-vqa", "fast-vqa-m", "fastervqa", "fastervqa-ms", "fastervqa-mt"]
OURS = [
    "brisque",
    "brisque-opencv",
    "brisque-svr",
    "bvqa-2022",
    "causes",
    "cnn-resnet50",
    "dover",
    "dover-mobile",
    "fast-vqa",
    "fast-vqa-m",
    "fastervqa",
    "fastervqa-ms",
    "fastervqa-mt",
    "kvq",
    "kvq-lite",
    "kvq-tiny",
    "luma-sharpness",
    "mdtvsfa",
    "niqe",
    "nss",
    "pvq",
    "rapique",
    "saliency",
    "saliency-similarity",
    "swinv2-ctf",
    "uvq-1.0",
    "uvq-1.5",
    "videval",
    "vsfa",
    "vsfa-cnn",
    "vsfa-cnn-saliency",
]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, source: str = "") -> None:
    """Install a distribution with one entry point in the group of models, with the files that pip writes."""
    info = folder / "other_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-model\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kvq_batch.models]\n{entry}\n")
    (folder / "other_model.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "other_model", raising=False)


THIRD_PARTY = """
from kvq_batch.models.luma_sharpness.family import LumaSharpnessFamily
family = LumaSharpnessFamily(name="other", version="7")
nothing = 3
"""


def test_built_in_models_have_a_summary() -> None:
    assert registry.names() == OURS
    for name in OURS:
        assert len(registry.summary(name)) > 20
    assert "needs weights" in registry.summary("kvq")
    assert "UNTRAINED" in registry.summary("kvq-tiny")


def test_listing_and_describing_import_no_torch() -> None:
    code = (
        "import sys; from kvq_batch.models import registry; from kvq_batch.domain.scorer import ModelOptions;"
        "[registry.summary(name) for name in registry.names()];"
        "[registry.describe(ModelOptions(name)) for name in ('kvq-tiny', 'kvq-lite', 'luma-sharpness')];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_declarations_of_built_in_models() -> None:
    tiny = registry.describe(ModelOptions("kvq-tiny"))
    assert tiny.card.origin == "untrained"
    assert tiny.card.model_id.startswith("kvq-tiny@untrained-")
    assert "UNTRAINED" in tiny.card.summary
    luma = registry.describe(ModelOptions("luma-sharpness"))
    assert luma.card.origin == "handcrafted"
    # Equal requests share one decode.
    assert tiny.frames == luma.frames == FrameRequest()
    assert tiny.maps == ("texture", "saliency")
    assert luma.maps == ()


def test_unknown_name_lists_registered_models() -> None:
    known = ", ".join(OURS)
    with pytest.raises(SpecError, match=f"Unknown model 'kvk'. Registered models: {known}"):
        registry.describe(ModelOptions("kvk"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions("kvq"), r"needs KVQ\.pth \(.*torch\.save.*GitHub.*no licence.*--weights PATH"),
        (ModelOptions("luma-sharpness", "x.pth"), "has no weights"),
        (ModelOptions("luma-sharpness", device="cuda"), "does not run on cuda. Set device to 'cpu'"),
        (ModelOptions("luma-sharpness", precision="bf16"), "precision bf16. Set precision to 'fp32'"),
        (ModelOptions("kvq-tiny", precision="fp16"), "fp16 needs a GPU"),
        (ModelOptions("kvq-tiny", num_threads=0), "num_threads is 0"),
    ],
)
def test_unsupported_options_are_rejected(options: ModelOptions, message: str) -> None:
    for load_model in (registry.describe, registry.build):
        with pytest.raises(SpecError, match=message):
            load_model(options)


def test_entry_point_of_another_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "other = other_model:family", THIRD_PARTY)
    assert registry.names() == sorted([*OURS, "other"])
    assert registry.describe(ModelOptions("other")).card.model_id.startswith("other@7-")
    assert registry.build(ModelOptions("other")).spec.card.name == "other"


@pytest.mark.parametrize(
    ("entry", "source", "message"),
    [
        ("other = other_model:missing", THIRD_PARTY, "other_model:missing.*cannot be imported.*AttributeError"),
        ("other = absent_module:family", "", "absent_module:family.*cannot be imported"),
        ("other = other_model:family", "import absent_library", "cannot be imported.*absent_library"),
        ("other = other_model:family", "def broken(:", "cannot be imported.*SyntaxError"),
        ("other = other_model:nothing", THIRD_PARTY, "not a model family"),
        ("kvq = other_model:family", THIRD_PARTY, "registered 2 times"),
    ],
)
def test_broken_entry_point_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, source: str, message: str
) -> None:
    install(tmp_path, monkeypatch, entry, source)
    name = entry.split(" ")[0]
    assert name in registry.names()
    with pytest.raises(SpecError, match=f"Model '{name}'.*{message}"):
        registry.summary(name)
    assert registry.summary("kvq-tiny"), "other models still work"
