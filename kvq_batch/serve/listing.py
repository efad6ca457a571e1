"""The list of videos: one page of current scores, searched, filtered and sorted by the database."""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from kvq_batch.analysis.overview import Model, user_columns
from kvq_batch.analysis.questions import quote_identifier, quote_literal, select_current
from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session

PAGE_ROWS = 50
MAX_USER_COLUMNS = 5

SORTS = {
    "worst": "{quality} ASC NULLS LAST, video_id",
    "best": "{quality} DESC NULLS LAST, video_id",
    "id": "video_id",
    "longest": "duration_s DESC NULLS LAST, video_id",
    "shortest": "duration_s ASC NULLS LAST, video_id",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for, as in the address of the page. `number` counts pages from 1."""

    model: str
    search: str = ""
    where: str = ""
    sort: str = "worst"
    number: int = 1

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise SpecError(f"Unknown order {self.sort!r}. Orders: {', '.join(SORTS)}.")
        if self.number < 1:
            raise SpecError(f"Page {self.number}: pages are numbered from 1.")

    def link(self, number: int) -> str:
        """Return the address of another page of the same selection."""
        other = replace(self, number=number)
        values = {"model": other.model, "search": other.search, "where": other.where, "sort": other.sort}
        return "/videos?" + urlencode({**{k: v for k, v in values.items() if v}, "page": other.number})


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the list: up to PAGE_ROWS `rows`, the `columns` of the user's catalog, and the number of all rows."""

    selection: Selection
    rows: list[dict[str, Any]]
    columns: list[str]
    num_rows: int

    @property
    def num_pages(self) -> int:
        return max(1, -(-self.num_rows // PAGE_ROWS))


def find_page(session: Session, model: Model, selection: Selection) -> Page:
    """Return one page of the videos that a model has scored.

    Raises:
        SpecError: the condition is not one expression, or names an unknown column.
    """
    conditions = [f"model_id = {quote_literal(model.model_id)}"]
    if selection.search:
        conditions.append(f"contains(lower(video_id), lower({quote_literal(selection.search)}))")
    if selection.where:
        conditions.append(f"({check_expression(selection.where, 'The condition')})")
    source = f"FROM ({select_current(session)}) WHERE {' AND '.join(conditions)}"
    ((num_rows,),) = [row.values() for row in session.sql(f"SELECT count(*) AS n {source}").to_pylist()]
    columns = user_columns(session)[:MAX_USER_COLUMNS]
    shown = ", ".join(
        [
            "video_id",
            f"{model.column} AS quality",
            "duration_s",
            "width_px",
            "height_px",
            "codec",
            *(f"{quote_identifier(name)}::VARCHAR AS {quote_identifier(f'own_{i}')}" for i, name in enumerate(columns)),
        ]
    )
    order = SORTS[selection.sort].format(quality=model.column)
    offset = (selection.number - 1) * PAGE_ROWS
    rows = session.sql(f"SELECT {shown} {source} ORDER BY {order} LIMIT {PAGE_ROWS} OFFSET {offset}").to_pylist()
    return Page(selection, rows, columns, num_rows)
