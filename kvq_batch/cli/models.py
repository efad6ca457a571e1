"""The command that shows which models there are, and one model's card.

Nothing is built; with `--weights` a file is checked whole.
"""

from dataclasses import asdict
from typing import Annotated

import typer

from kvq_batch.cli.options import OutputOption
from kvq_batch.cli.output import Format, Output


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this model's card.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Weights whose card is wanted.", show_default=False)
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the registered models, or show one model's card.

    Example:  kvq-batch models kvq --weights KVQ.pth
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.models import registry

    out = Output(output)
    if name is None:
        out.rows([{"name": known, "summary": registry.summary(known)} for known in registry.names()])
        return
    spec = registry.describe(ModelOptions(name, weights))
    card = asdict(spec.card)
    height_width = spec.frames.size or "native"
    out.record(
        {
            "model_id": spec.card.model_id,
            **card,
            "frames": spec.frames.sampling.num_frames,
            "size": list(height_width) if isinstance(height_width, tuple) else height_width,
            "maps": list(spec.maps),
            "outputs": list(spec.outputs),
            "devices": list(spec.devices),
            "precisions": list(spec.precisions),
        }
    )
    out.warn_untrained([spec.card.origin])
