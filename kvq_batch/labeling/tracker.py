"""The account of a run that makes labels: versions that are open, labels and failures that are ready to be committed.

It lives in the driver; it starts no work and writes no table.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.config.recipe import Recipe
from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.stopping import Breaker
from kvq_batch.engine.work_tracker import Account, Pair, Work, failure_of, named_columns
from kvq_batch.labeling.label_index import LABELS_MODEL
from kvq_batch.labeling.stream import ALGORITHM, FAILURE_COLUMNS, VERSIONS
from kvq_batch.storage.options import display_uri

_OF_A_VERSION = ("label_id", "video_id", "source_id", "content_id", "segment", "recipe")


class LabelAccount(Account):
    """Versions to make (rows of VERSIONS), each closed by one label or one final failure."""

    def __init__(self, versions: pa.Table, max_attempts: int, breaker: Breaker) -> None:
        super().__init__(versions, max_attempts, breaker, lost_stage="label")
        self._named = named_columns(versions, VERSIONS.names)
        self._labels: list[Row] = []
        self.make_s = 0.0

    @property
    def work_s(self) -> Mapping[Work, float]:
        """As `Account.work_s`."""
        return {("label", LABELS_MODEL): self.make_s}

    @property
    def busy_s(self) -> Mapping[str, float]:
        """As `Account.busy_s`: making, which is all that its workers do."""
        return {"make": self.make_s}

    def add(self, results: pa.Table) -> None:
        """Takes in labels and failures."""
        for row in results.to_pylist():
            self.make_s += row["make_s"]
            pair = (row["item"], 0)
            if not self.open_bits(row["item"], 1):
                continue
            if row["error"] is not None:
                self.fail(pair, failure_of(row))
                continue
            self._labels.append(self._label_row(row))
            self.close(pair)

    def failure_row(self, pair: Pair, failure: Failure, is_final: bool) -> Row:
        """As `Account.failure_row`; the recipe stands as the model, and the label's id as the fingerprint."""
        version = self._version(pair[0])
        return {
            "video_id": version["video_id"],
            "content_id": version["content_id"],
            "model_id": f"{LABELS_MODEL}@{ALGORITHM}-{version['label_id'][:12]}",
            "fingerprint": version["label_id"],
            "uri": display_uri(version["uri"]),
            "model_name": LABELS_MODEL,
            **asdict(failure),
            "final": is_final,
            "failed_at": datetime.now(UTC),
        }

    def take_labels(self) -> list[Row]:
        """The labels so far, handed over once."""
        rows, self._labels = self._labels, []
        return rows

    def _label_row(self, row: Row) -> Row:
        version = self._version(row["item"])
        recipe = Recipe.from_json(version["recipe"])
        measured = {name: value for name, value in row.items() if name not in ("item", *FAILURE_COLUMNS)}
        return {
            **{name: version[name] for name in _OF_A_VERSION},
            "group_id": f"{version['source_id']}/{recipe.rate}",
            "uri": display_uri(version["uri"]),
            "name": str(recipe),
            "kind": recipe.kind,
            **measured,
            "labelled_at": datetime.now(UTC),
        }

    def _version(self, item: int) -> Row:
        return {name: column[item].as_py() for name, column in self._named.items()}
