"""Checkpoint files of KVQ: safetensors with a card (`checkpoints.card_file`)."""

from kvq_batch.models.checkpoints.card_file import METADATA_KEY, CardFormat, SizedCheckpoint
from kvq_batch.models.kvq.config import KvqConfig, tensor_shapes

__all__ = ["FORMAT", "METADATA_KEY", "Checkpoint", "card_json", "check_tensors", "digest", "load", "parse_card", "save"]

Checkpoint = SizedCheckpoint[KvqConfig]
FORMAT = CardFormat("kvq", KvqConfig.from_json, tensor_shapes)

digest = FORMAT.digest
save = FORMAT.save
load = FORMAT.load
check_tensors = FORMAT.check_tensors
card_json = FORMAT.card_json
parse_card = FORMAT.parse_card
