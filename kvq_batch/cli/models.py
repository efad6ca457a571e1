"""The command `models`: list registered models, or show and check one model's card."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import OutputOption
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.domain.frames import FrameRequest
    from kvq_batch.domain.scorer import ScorerSpec


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this model's card.", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Check this file and show its card.", show_default=False),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the registered models, or show one model's card.

    Examples:

      $ kvq-batch models
      $ kvq-batch models kvq --weights KVQ.pth
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.models import registry

    out = Output(output)
    if name is None:
        if weights is not None:
            raise SpecError("--weights needs the NAME of the model.")
        out.rows([{"name": known, "summary": _summary(known)} for known in registry.names()], ["name", "summary"])
        return
    summary = registry.summary(name)
    try:
        spec = registry.describe(ModelOptions(name, weights))
    except SpecError as error:
        if weights is not None:
            raise
        # A model that needs weights has no card without them, but a summary.
        out.record({"name": name, "summary": summary})
        text = str(error)
        out.note(text if "--weights" in text else f"{text.rstrip('.')}. Pass --weights FILE to show their card.")
        return
    out.record(_card(spec))
    out.warn_untrained([spec.card.model_id] if spec.card.origin == "untrained" else [])


def _summary(name: str) -> str:
    """Return the summary of a model, or its error: a broken model must not hide the others."""
    from kvq_batch.models import registry

    try:
        return registry.summary(name)
    except SpecError as error:
        return f"BROKEN: {error}"


def _frames(request: "FrameRequest") -> str:
    number = request.sampling.num_frames
    return type(request.sampling).__name__ if number is None else str(number)


def _card(spec: "ScorerSpec") -> dict[str, Any]:
    card = spec.card
    return {
        "model_id": card.model_id,
        "name": card.name,
        "version": card.version,
        "origin": card.origin,
        "summary": card.summary,
        "training_data": card.training_data,
        "licence": card.licence,
        "digest": card.digest,
        "calibrations": {name: list(values) for name, values in card.calibrations.items()},
        "frames": ", ".join(_frames(request) for request in spec.requests),
        "size": ", ".join("native" if r.size is None else f"{r.size[1]}x{r.size[0]}" for r in spec.requests),
        "maps": list(spec.maps),
        "outputs": list(spec.outputs),
        "devices": list(spec.devices),
        "precisions": list(spec.precisions),
    }
