"""A search for planted secrets in all files below a folder, in the values of Parquet files too."""

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq


def find_secrets(folder: Path, secrets: Sequence[str]) -> list[str]:
    """Return "path: secret" for each file below `folder` that has one of `secrets`, as it is or URL-encoded."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = _content(path)
            found += [f"{path}: {secret}" for secret in secrets if any(s in content for s in _spellings(secret))]
    return found


def _spellings(secret: str) -> set[bytes]:
    return {secret.encode(), quote(secret, safe="").encode(), secret.encode("utf-16-le")}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:4] == b"PAR1":
        # Compressed pages hide their text from a plain search.
        table = pq.ParquetFile(io.BytesIO(content)).read()
        footer = pq.read_metadata(io.BytesIO(content))
        texts = [str(table.to_pylist()), str(table.schema.metadata), str(footer.to_dict())]
        content += "\n".join(texts).encode("utf-8", "surrogateescape")
    elif content[:2] == b"\x1f\x8b":
        content += gzip.decompress(content)
    return content
