"""Base of model families that score with files of other authors: they are described and built from the loaded files.

Import torch in the methods of a family, not in its module, so commands that only list models start fast.
"""

from abc import ABC, abstractmethod

from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile, load_published_files
from kvq_batch.models.checkpoints.tensors import Tensors


class PublishedFamily(ABC):
    """A `ModelFamily` (models/registry.py) whose weights are `files`."""

    __slots__ = ()

    name: str

    @property
    @abstractmethod
    def files(self) -> tuple[PublishedFile, ...]:
        """The files that the model needs."""

    @abstractmethod
    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """Return the declaration of the scorer with these weights."""

    @abstractmethod
    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """Return the scorer on its device. Raises: SpecError: the machine has no GPU."""

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer, after reading and checking its whole weights.

        Raises:
            SpecError: no weights, or a file is missing.
            CheckpointError: weights that are damaged, unsafe or of another network.
        """
        return self.spec(self._load(options))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or the machine has no GPU.
        """
        loaded = self._load(options)
        return self.scorer(self.spec(loaded), loaded, options)

    def load_part(self, options: ModelOptions, part: str) -> Tensors:
        """Return the tensors of one of several files, without reading the others.

        Raises:
            SpecError: no weights, or the file is missing.
            CheckpointError: weights that are damaged, unsafe or of another network.
        """
        files = tuple(file for file in self.files if file.part == part)
        return load_published_files(self.name, options.weights, files).tensors[part]

    def _load(self, options: ModelOptions) -> LoadedFiles:
        return load_published_files(self.name, options.weights, self.files)
