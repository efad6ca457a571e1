"""What makes two results the same result: content ids, model ids, fingerprints, runs.

A result is identified by (video id, content id, model id, fingerprint, clip index) and is stored at most once per run.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

Reason = Literal[
    "new", "content changed", "model changed", "preprocessing changed", "retry", "re-score", "features missing"
]
REASONS: tuple[Reason, ...] = get_args(Reason)

UNKNOWN_CONTENT = "unknown:"
"""Content id of an object that could not be listed: fetching it records the reason in `failures`."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model of a job as rows know it: registry name, model id, and the fingerprint of its preprocessing."""

    name: str
    model_id: str
    fingerprint: str


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """sha256 hex of everything that changes a score beside the bytes and the model."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()


def cut_content_id(content_id: str, start_s: float | None, end_s: float | None) -> str:
    """Content id of a stretch of an object, as a media fragment: `etag:abc#t=12.0,17.5`; unchanged for the whole."""
    if start_s is None and end_s is None:
        return content_id
    end = "" if end_s is None else f",{end_s!r}"
    return f"{content_id}#t={start_s or 0.0!r}{end}"


def new_run_id() -> str:
    """UTC time to the second and six random hex digits: sorts by time, never repeats."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
