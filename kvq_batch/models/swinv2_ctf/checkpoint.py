"""Files of the coarse-to-fine network: safetensors with a card (`checkpoints.card_file`)."""

from kvq_batch.models.checkpoints.card_file import CardFormat, SizedCheckpoint
from kvq_batch.models.checkpoints.networks import network_shapes
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.swinv2_ctf.config import CtfConfig
from kvq_batch.models.swinv2_ctf.network import CtfNetwork

CtfCheckpoint = SizedCheckpoint[CtfConfig]


def tensor_shapes(config: CtfConfig) -> dict[str, Shape]:
    """Return the shape of every learnable tensor by name, in file order."""
    return dict(network_shapes(lambda: CtfNetwork(config)))


FORMAT = CardFormat("swinv2-ctf", CtfConfig.from_json, tensor_shapes)
