"""Training imports torch, numpy and safetensors, but nothing of clusters, tables or videos."""

import subprocess
import sys
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "kvq_batch" / "training"


def test_training_imports_no_engine_storage_or_media() -> None:
    # `dataset` joins labels, storage and the decoder for a training; no other module of training imports it.
    names = {path.stem for path in TRAINING.glob("*.py")} - {"__init__", "dataset"}
    modules = sorted(f"kvq_batch.training.{name}" for name in names)
    heavy = "{'ray', 'pyarrow', 'deltalake', 'duckdb', 'fsspec', 's3fs', 'pydantic', 'av', 'decord', 'scipy', 'PIL'}"
    code = f"import sys, {', '.join(modules)}\nprint(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(modules) > 8
    assert out.stdout.strip() == "[]"
