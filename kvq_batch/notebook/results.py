"""Results of earlier runs for Python: queries with parameters, tables of your own, maps, timelines and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.analysis.questions import ask, quote_literal
from kvq_batch.analysis.video_maps import Moment, find_video
from kvq_batch.domain.errors import SpecError
from kvq_batch.notebook.answer import Answer
from kvq_batch.storage.options import display_uri
from kvq_batch.tables.questions import count_totals
from kvq_batch.tables.sandbox import Parameters
from kvq_batch.tables.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class MapArrays:
    """Maps of one video by one model, in the order of time: T time slots of all clips, R rows and C columns of cells.

    `texture` float64 [T, R, C] is the quality of each cell in the unit `unit` ("mos" or "raw score"); `saliency`
    float32 [T, R, C] its weight, with mean 1 in each slot. `from_s` and `until_s`, float64 [T], are times in the video
    in seconds, NaN where they are not stored. `value` float64 [T] is the quality of each slot, `clip_index` int [T].
    """

    video_id: str
    model_id: str
    unit: str
    texture: NDArray[np.float64] | None
    saliency: NDArray[np.float32] | None
    from_s: NDArray[np.float64]
    until_s: NDArray[np.float64]
    value: NDArray[np.float64]
    clip_index: NDArray[np.int64]


class Results:
    """Read-only results below one address, as they were when it was opened. Use it in a `with` block, or `close` it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def session(self) -> Session:
        """The session, for functions of `kvq_batch.analysis` and `kvq_batch.report`."""
        return self._session

    def sql(self, text: str, parameters: Parameters | None = None) -> Answer:
        """Run one SELECT or EXPLAIN (DuckDB) over the views and the tables that were registered.

        `parameters` are the values of `$name` (a dictionary) or `?` (a list) in the text.

        Raises:
            SpecError: the text is not one read, it exceeds a limit, or DuckDB rejects it.
        """
        return Answer(self._session.sql(text, parameters))

    def register(self, name: str, table: Any) -> None:
        """Make a table of yours available to `sql` under `name`; an earlier one of this name is replaced.

        `table` is a pyarrow Table, a frame of pandas or polars, an `Answer`, or anything with the Arrow C stream
        interface.

        Raises:
            SpecError: the name is that of a view, or the table cannot be read as Arrow.
        """
        self._session.register(name, _to_arrow(table))

    def ask(self, question: str, where: str | None = None, by: str | None = None, limit: int = 10) -> Answer:
        """Return the answer to a question of `kvq-batch analyze`, such as "worst" or "distribution".

        Raises:
            SpecError: an unknown question or column, or a condition that is not one SQL expression.
        """
        return Answer(ask(self._session, question, where, by, limit))

    def timeline(self, video_id: str, model: str | None = None) -> Answer:
        """Return the time slots of the current scores of a video: model, from_s, until_s, raw_score, mos.

        Raises:
            SpecError: the video has no current score (of this model).
        """
        chosen = "" if model is None else f"AND model_name = {quote_literal(model)}"
        answer = self._session.sql(
            "SELECT model_name, clip_index, slot, from_s, until_s, raw_score, mos FROM timeline "
            f"WHERE video_id = {quote_literal(video_id)} {chosen} ORDER BY model_name, clip_index, slot"
        )
        if not answer.num_rows:
            raise SpecError(f"Video {video_id!r} has no current score{f' of model {model!r}' if model else ''}.")
        return Answer(answer)

    def maps(self, video_id: str, model: str | None = None) -> MapArrays:
        """Return the maps of a video as arrays with times; of the first model with maps if `model` is None.

        Raises:
            SpecError: the video has no maps (of this model).
        """
        video = find_video(self._session, video_id, model)
        moments = video.moments
        return MapArrays(
            video_id=video.video_id,
            model_id=video.model_id,
            unit=video.scale.unit,
            texture=_stack([moment.texture for moment in moments]),
            saliency=_stack([moment.saliency for moment in moments]),
            from_s=_times(moments, "from_s"),
            until_s=_times(moments, "until_s"),
            value=np.array([moment.value for moment in moments]),
            clip_index=np.array([moment.clip_index for moment in moments]),
        )

    def picture(
        self, video_id: str, model: str | None = None, form: Literal["still", "sheet"] = "still", num_slots: int = 4
    ) -> "Image":
        """Return a picture of the maps of a video over its frames (PIL): the worst moment, or a sheet of several.

        Reads the video again from its address in the catalog.

        Raises:
            SpecError: the video has no maps (of this model).
            ItemError: the video can no longer be fetched or decoded, or has changed.
        """
        # Imported here: drawing is not needed for queries.
        from kvq_batch.report.picture import draw_video

        video = find_video(self._session, video_id, model)
        return draw_video(video, self._session.tables.options, num_slots, form)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Results({display_uri(self._session.tables.uri)!r})"

    def _repr_html_(self) -> str:
        """Return the totals of the tables as HTML."""
        return Answer(pa.Table.from_pylist([count_totals(self._session)]))._repr_html_()


def _to_arrow(table: Any) -> pa.Table:
    try:
        return pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SpecError(f"A table of type {type(table).__name__} cannot be read as Arrow: {error}") from error


def _stack(maps: Sequence[NDArray[Any] | None]) -> Any:
    present = [values for values in maps if values is not None]
    return np.stack(present) if present else None


def _times(moments: Sequence[Moment], name: str) -> NDArray[np.float64]:
    return np.array([np.nan if (value := getattr(moment, name)) is None else value for moment in moments], np.float64)
