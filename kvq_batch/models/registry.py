"""Registry of models: find a model by name, describe it, build its scorer.

A name maps to "module:object", an object that implements `ModelFamily`. The models of this package are listed below.
Other packages register theirs in the entry-point group "kvq_batch.models". A model is imported when it is first used,
so that commands which need no model start fast.
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions, Pooler, Scorer, ScorerSpec

ENTRY_POINT_GROUP = "kvq_batch.models"

_BUILT_IN = (
    EntryPoint("brisque", "kvq_batch.models.brisque.family:brisque", ENTRY_POINT_GROUP),
    EntryPoint("brisque-opencv", "kvq_batch.models.brisque.family:brisque_opencv", ENTRY_POINT_GROUP),
    EntryPoint("brisque-svr", "kvq_batch.models.brisque_svr.family:brisque_svr", ENTRY_POINT_GROUP),
    EntryPoint("bvqa-2022", "kvq_batch.models.unavailable:bvqa_2022", ENTRY_POINT_GROUP),
    EntryPoint("cnn-resnet50", "kvq_batch.models.rapique.family:cnn_resnet50", ENTRY_POINT_GROUP),
    EntryPoint("dover", "kvq_batch.models.dover.family:dover", ENTRY_POINT_GROUP),
    EntryPoint("dover-mobile", "kvq_batch.models.dover.family:dover_mobile", ENTRY_POINT_GROUP),
    EntryPoint("causes", "kvq_batch.models.causes.family:causes", ENTRY_POINT_GROUP),
    EntryPoint("fast-vqa", "kvq_batch.models.fastvqa.family:fast_vqa", ENTRY_POINT_GROUP),
    EntryPoint("fast-vqa-m", "kvq_batch.models.fastvqa.family:fast_vqa_m", ENTRY_POINT_GROUP),
    EntryPoint("fastervqa", "kvq_batch.models.fastvqa.family:fastervqa", ENTRY_POINT_GROUP),
    EntryPoint("fastervqa-ms", "kvq_batch.models.fastvqa.family:fastervqa_ms", ENTRY_POINT_GROUP),
    EntryPoint("fastervqa-mt", "kvq_batch.models.fastvqa.family:fastervqa_mt", ENTRY_POINT_GROUP),
    EntryPoint("kvq", "kvq_batch.models.kvq.family:kvq", ENTRY_POINT_GROUP),
    EntryPoint("kvq-lite", "kvq_batch.models.kvq.family:kvq_lite", ENTRY_POINT_GROUP),
    EntryPoint("kvq-tiny", "kvq_batch.models.kvq.family:kvq_tiny", ENTRY_POINT_GROUP),
    EntryPoint("luma-sharpness", "kvq_batch.models.luma_sharpness.family:luma_sharpness", ENTRY_POINT_GROUP),
    EntryPoint("mdtvsfa", "kvq_batch.models.mdtvsfa.family:mdtvsfa", ENTRY_POINT_GROUP),
    EntryPoint("niqe", "kvq_batch.models.niqe.family:niqe", ENTRY_POINT_GROUP),
    EntryPoint("nss", "kvq_batch.models.rapique.family:nss", ENTRY_POINT_GROUP),
    EntryPoint("pvq", "kvq_batch.models.unavailable:pvq", ENTRY_POINT_GROUP),
    EntryPoint("rapique", "kvq_batch.models.rapique.family:rapique", ENTRY_POINT_GROUP),
    EntryPoint("saliency", "kvq_batch.models.score_cam.family:saliency", ENTRY_POINT_GROUP),
    EntryPoint("saliency-similarity", "kvq_batch.models.score_cam.family:similarity", ENTRY_POINT_GROUP),
    EntryPoint("swinv2-ctf", "kvq_batch.models.swinv2_ctf.family:swinv2_ctf", ENTRY_POINT_GROUP),
    EntryPoint("uvq-1.0", "kvq_batch.models.uvq.family:uvq_10", ENTRY_POINT_GROUP),
    EntryPoint("uvq-1.5", "kvq_batch.models.uvq.family:uvq_15", ENTRY_POINT_GROUP),
    EntryPoint("videval", "kvq_batch.models.videval.family:videval", ENTRY_POINT_GROUP),
    EntryPoint("vsfa", "kvq_batch.models.vsfa.family:vsfa", ENTRY_POINT_GROUP),
    EntryPoint("vsfa-cnn", "kvq_batch.models.vsfa.family:vsfa_cnn", ENTRY_POINT_GROUP),
    EntryPoint("vsfa-cnn-saliency", "kvq_batch.models.score_cam.family:vsfa_cnn_saliency", ENTRY_POINT_GROUP),
)

# What importing a module of another package may raise. Any other exception is shown with its traceback.
_IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError)


@runtime_checkable
class ModelFamily(Protocol):
    """The object that a name refers to. Import torch and load weights in its `describe` and `build`, not before."""

    @property
    def summary(self) -> str:
        """One line for users: what the model measures and what it needs."""
        ...

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer with these options, after checking the whole weights.

        Raises:
            SpecError: options or weights that this model cannot use.
        """
        ...

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or a device that this machine does not have.
        """
        ...


@runtime_checkable
class PoolingFamily(Protocol):
    """Also implemented by the family of a model with a streamed request."""

    def build_pooler(self, options: ModelOptions) -> Pooler:
        """Return the pooler. The driver calls this, once per run: import torch only if the pooling needs it."""
        ...


def names() -> list[str]:
    """Return the names of all registered models, sorted. A registered model may still fail to import."""
    return sorted({point.name for point in _entry_points()})


def summary(name: str) -> str:
    """Return one line about a model, without loading its weights.

    Raises:
        SpecError: the name is unknown, or its model cannot be imported.
    """
    return _family(name).summary


def describe(options: ModelOptions) -> ScorerSpec:
    """Return the declaration of a model with these options, after checking the whole weights. Uses no device.

    Raises:
        SpecError: an unknown name, or options that the model does not support.
        CheckpointError: weights that cannot be read or belong to another model.
    """
    spec = _checked_family(options).describe(options)
    _check(spec, options)
    return spec


def build(options: ModelOptions) -> Scorer:
    """Return the scorer of a model with these options, loaded on its device.

    Raises:
        SpecError: as `describe`, or a device that this machine does not have.
    """
    family = _checked_family(options)
    scorer = family.build(options)
    _check(scorer.spec, options)
    return scorer


def build_pooler(options: ModelOptions) -> Pooler:
    """Return what pools the partial results of a streamed model with these options.

    Raises:
        SpecError: the model has no pooler.
    """
    family = _checked_family(options)
    if not isinstance(family, PoolingFamily):
        raise SpecError(f"Model {options.name!r} requests streamed frames but has no build_pooler. Update its package.")
    return family.build_pooler(options)


def _checked_family(options: ModelOptions) -> ModelFamily:
    """Return the family of these options, after the checks that all families share."""
    if options.num_threads is not None and options.num_threads < 1:
        raise SpecError(f"Model {options.name!r}: num_threads is {options.num_threads}. Set it to at least 1.")
    return _family(options.name)


def _check(spec: object, options: ModelOptions) -> None:
    """Check that `spec` is a declaration, and that it supports the device and the precision of these options."""
    name = options.name
    if not isinstance(spec, ScorerSpec):
        raise SpecError(
            f"Model {name!r}: its package returns a {type(spec).__name__} instead of a ScorerSpec. Update or uninstall "
            "that package."
        )
    if options.device not in spec.devices:
        raise SpecError(
            f"Model {name!r} does not run on {options.device}. Set device to {' or '.join(map(repr, spec.devices))}."
        )
    if options.precision not in spec.precisions:
        raise SpecError(
            f"Model {name!r} does not support precision {options.precision}. Set precision to "
            f"{' or '.join(map(repr, spec.precisions))}."
        )


def _entry_points() -> list[EntryPoint]:
    return [*_BUILT_IN, *entry_points(group=ENTRY_POINT_GROUP)]


def _family(name: str) -> ModelFamily:
    """Return the object that is registered under a name."""
    points = [point for point in _entry_points() if point.name == name]
    if not points:
        raise SpecError(f"Unknown model {name!r}. Registered models: {', '.join(names())}.")
    targets = sorted({point.value for point in points})
    if len(targets) > 1:
        raise SpecError(
            f"Model {name!r} is registered {len(targets)} times: {', '.join(targets)}. Uninstall all but one package."
        )
    try:
        family = import_module(points[0].module)
        for attribute in points[0].attr.split("."):
            family = getattr(family, attribute)
    except _IMPORT_ERRORS as error:
        raise SpecError(
            f"Model {name!r} is registered as {targets[0]}, which cannot be imported "
            f"({type(error).__name__}: {error}). Update or uninstall its package."
        ) from error
    if not isinstance(family, ModelFamily):
        raise SpecError(
            f"Model {name!r}: {targets[0]} is not a model family: it lacks summary, describe or build. Update or "
            "uninstall its package."
        )
    return family
