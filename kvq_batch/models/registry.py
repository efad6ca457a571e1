"""Models by name: what is registered, what it declares, and the live scorer, each resolved only when asked for.

A name maps to "module:object", an object that implements `ModelFamily`. Ours are below; others register theirs in
the entry-point group "kvq_batch.models" of their distribution and need no change here. Importing this module
deliberately imports no model and no torch.
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec

ENTRY_POINT_GROUP = "kvq_batch.models"

_OURS = (
    EntryPoint("kvq", "kvq_batch.models.kvq.family:kvq", ENTRY_POINT_GROUP),
    EntryPoint("kvq-lite", "kvq_batch.models.kvq.family:kvq_lite", ENTRY_POINT_GROUP),
    EntryPoint("kvq-tiny", "kvq_batch.models.kvq.family:kvq_tiny", ENTRY_POINT_GROUP),
    EntryPoint("luma-sharpness", "kvq_batch.models.luma_sharpness.family:luma_sharpness", ENTRY_POINT_GROUP),
)

# What importing somebody else's module may raise; anything beyond these is a fault that should be seen as it is.
_IMPORT_FAULTS = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError)


@runtime_checkable
class ModelFamily(Protocol):
    """What a name refers to. Importing it must be cheap: torch and weights are for `describe` and `build`."""

    @property
    def summary(self) -> str:
        """One line for people: what it measures and what it needs."""
        ...

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """What the scorer of these options will be, its weights checked in full.

        Raises:
            SpecError: options or weights that cannot be built.
        """
        ...

    def build(self, options: ModelOptions) -> Scorer:
        """The live scorer, on its device.

        Raises:
            SpecError: as `describe`, or a device that this machine lacks.
        """
        ...


def names() -> list[str]:
    """Every registered name, in order; a registered model may still turn out broken when it is resolved."""
    return sorted({point.name for point in _points()})


def summary(name: str) -> str:
    """One line about a model, without its weights.

    Raises:
        SpecError: a name that is unknown or registered but broken.
    """
    return _family(name).summary


def describe(options: ModelOptions) -> ScorerSpec:
    """What a scorer of these options declares; weights are checked in full, no device is touched.

    Raises:
        SpecError: an unknown name, or options that this model does not take.
        CheckpointError: weights that are not this model's.
    """
    spec = _checked_family(options).describe(options)
    _check(spec, options)
    return spec


def build(options: ModelOptions) -> Scorer:
    """The live scorer of these options, on its device.

    Raises:
        SpecError: as `describe`, or a device that this machine lacks.
    """
    family = _checked_family(options)
    scorer = family.build(options)
    _check(scorer.spec, options)
    return scorer


def _checked_family(options: ModelOptions) -> ModelFamily:
    """The family of these options, once what no family takes is refused."""
    if options.num_threads is not None and options.num_threads < 1:
        raise SpecError(f"model {options.name!r}: num_threads is {options.num_threads}, it must be at least 1")
    return _family(options.name)


def _check(spec: object, options: ModelOptions) -> None:
    """Refuses options that this model does not declare, and a declaration that is none."""
    name = options.name
    if not isinstance(spec, ScorerSpec):
        raise SpecError(f"model {name!r} declares a {type(spec).__name__}, no ScorerSpec; repair its package")
    if options.device not in spec.devices:
        raise SpecError(f"model {name!r} runs on {' or '.join(spec.devices)}, not on {options.device}; change device")
    if options.precision not in spec.precisions:
        offered = " or ".join(spec.precisions)
        raise SpecError(f"model {name!r} computes in {offered}, not in {options.precision}; change precision")


def _points() -> list[EntryPoint]:
    return [*_OURS, *entry_points(group=ENTRY_POINT_GROUP)]


def _family(name: str) -> ModelFamily:
    """The one object that is registered under a name."""
    points = [point for point in _points() if point.name == name]
    if not points:
        raise SpecError(f"unknown model {name!r}; registered are {', '.join(names())}")
    places = sorted({point.value for point in points})
    if len(places) > 1:
        raise SpecError(f"model {name!r} is registered {len(places)} times, as {' and '.join(places)}; uninstall one")
    try:
        family = import_module(points[0].module)
        for attribute in points[0].attr.split("."):
            family = getattr(family, attribute)
    except _IMPORT_FAULTS as error:
        raise SpecError(
            f"model {name!r} is registered as {places[0]}, which does not import "
            f"({type(error).__name__}: {error}); repair or uninstall its package"
        ) from error
    if not isinstance(family, ModelFamily):
        raise SpecError(f"model {name!r}: {places[0]} has no summary, describe and build; it is not a model family")
    return family
