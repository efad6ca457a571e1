"""The local page: an overview, the list of videos, one video, and a box for SQL, over tables that may grow.

Pages are made on the server, from the same rows and charts as the HTML report. Jinja2 escapes every text. All answers
are computed from committed results; nothing is written.
"""

import io
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.csv
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from kvq_batch import __version__
from kvq_batch.analysis import overview
from kvq_batch.analysis.overview import Model
from kvq_batch.analysis.questions import quote_literal
from kvq_batch.analysis.video_maps import VideoMaps, find_video
from kvq_batch.domain.errors import ItemError, KvqBatchError, SpecError
from kvq_batch.report import charts
from kvq_batch.report.page import asset, make_environment
from kvq_batch.report.picture import draw_video
from kvq_batch.serve.access import LocalReadOnly
from kvq_batch.serve.listing import SORTS, Selection, find_page
from kvq_batch.serve.live import LiveTables
from kvq_batch.serve.media import find_uri, serve_bytes
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact
from kvq_batch.tables.questions import list_view_columns
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.session import CURRENT_VIEWS

_logger = logging.getLogger(__name__)

NUM_WORST = 10
MAX_SQL_ROWS = 500
QUERY_TIMEOUT_S = 120.0

_HISTORY = """
SELECT s.model_name, s.model_id, s.run_id, r.started_at, s.mos, s.raw_score FROM scores s
LEFT JOIN runs r ON r.run_id = s.run_id
WHERE s.video_id = {video_id} ORDER BY s.commit_seq DESC, s.model_name LIMIT 100
"""

_FAILURES = """
SELECT model_name, stage, error, message, permanent, failed_at FROM unresolved_failures
WHERE video_id = {video_id} ORDER BY model_name
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What all pages need. `pages` and `queries` are separate sessions: a slow query does not stop the pages."""

    name: str
    storage: StorageOptions
    pages: LiveTables
    queries: LiveTables


def create_app(tables: str, storage: StorageOptions, memory_limit: str = "4GB") -> Starlette:
    """Return the ASGI app over the tables below `tables`. Raises: SpecError if there are none."""
    site = Site(
        redact(tables),
        storage,
        LiveTables(tables, storage, QueryLimits(memory_limit, QUERY_TIMEOUT_S), CURRENT_VIEWS),
        LiveTables(tables, storage, QueryLimits(memory_limit, QUERY_TIMEOUT_S)),
    )

    def route(path: str, handler: Callable[[Site, Request], Response]) -> Route:
        @wraps(handler)
        def answer(request: Request) -> Response:
            try:
                return handler(site, request)
            except (KvqBatchError, HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a request
                # A bug. Its traceback may hold secrets, and starlette would log it as it is.
                _logger.error("%s: %s", request.url.path, redact("".join(traceback.format_exception(error))))
                return _error(site, 500, request, error)

        return Route(path, answer, methods=["GET"])

    routes = [
        route("/", _start),
        route("/frame", _frame),
        route("/videos", _videos),
        route("/video", _video),
        route("/picture.png", _picture),
        route("/media", _media),
        route("/sql", _sql),
        route("/sql.csv", _sql_csv),
        Route("/style.css", partial(_static, "text/css", lambda: asset("report.css") + _own("serve.css"))),
        Route("/report.js", partial(_static, "text/javascript", lambda: asset("report.js"))),
        Route("/serve.js", partial(_static, "text/javascript", lambda: _own("serve.js"))),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
    ]
    handlers: Mapping[Any, Any] = {
        SpecError: partial(_error, site, 400),
        ItemError: partial(_error, site, 502),
        HTTPException: lambda request, error: _error(site, error.status_code, request, error),
    }
    return Starlette(routes=routes, middleware=[Middleware(LocalReadOnly)], exception_handlers=dict(handlers))


def _start(site: Site, request: Request) -> Response:
    models, model = _models(site, request)
    pages = site.pages
    with pages.session():
        values: dict[str, Any] = {
            "totals": pages.cached(("totals",), overview.find_totals),
            "run": pages.cached(("run",), overview.find_run),
            "failures": pages.cached(("failures",), overview.find_failure_counts),
            "coverage": pages.cached(("coverage",), overview.find_coverage),
        }
        if model is not None:
            name = model.model_name
            values |= {
                "distribution": pages.cached(
                    ("distribution", name), lambda session: overview.find_distribution(session, model)
                ),
                "worst": pages.cached(
                    ("worst", name), lambda session: overview.find_worst_videos(session, model, limit=NUM_WORST)
                ),
            }
    return _page(site, "start.html.j2", request, models=models, model=model, **values)


def _frame(site: Site, request: Request) -> Response:
    """Return the map of the frame. It reads all maps, so it has a page of its own, and does not hold up the others."""
    models, model = _models(site, request)
    cells = (
        []
        if model is None
        else site.queries.cached(("cells", model.model_name), lambda session: overview.find_cells(session, model))
    )
    return _page(site, "frame.html.j2", request, models=models, model=model, cells=cells)


def _videos(site: Site, request: Request) -> Response:
    models, model = _models(site, request)
    if model is None:
        return _page(site, "videos.html.j2", request, models=models, model=None, page=None, sorts=SORTS)
    asked = request.query_params
    number = asked.get("page", "1")
    if not (number.isascii() and number.isdigit()):
        raise SpecError(f"Page {number!r} is not a number.")
    selection = Selection(
        model.model_name,
        asked.get("search", "").strip(),
        asked.get("where", "").strip(),
        asked.get("sort", "worst"),
        int(number[:9]),
    )
    with site.pages.session() as session:
        page = find_page(session, model, selection)
    if page.rows == [] and selection.number > page.num_pages:
        return RedirectResponse(selection.link(page.num_pages))
    return _page(site, "videos.html.j2", request, models=models, model=model, page=page, sorts=SORTS)


def _video(site: Site, request: Request) -> Response:
    video_id = _video_id(request)
    quoted = quote_literal(video_id)
    with site.pages.session() as session:
        history = session.sql(_HISTORY.format(video_id=quoted)).to_pylist()
        failures = session.sql(_FAILURES.format(video_id=quoted)).to_pylist()
        catalog = session.sql(f"SELECT * FROM catalog WHERE video_id = {quoted} LIMIT 1").to_pylist()
        if not (history or failures or catalog):
            raise HTTPException(404, f"There is no video {video_id!r} in these tables.")
        # Models of causes or features have no score.
        history = [row for row in history if row["raw_score"] is not None]
        names = list(dict.fromkeys(row["model_name"] for row in history))
        # The catalog has the address of the frames; of a removed video only the scores are shown.
        videos = [find_video(session, video_id, name, has_maps=False) for name in names] if catalog else []
        own = overview.user_columns(session)
        causes = overview.find_causes_of_videos(session, [video_id]).get(video_id, [])
    shown = _chosen(videos, request.query_params.get("model"))
    return _page(
        site,
        "video.html.j2",
        request,
        models=[],
        model=None,
        video_id=video_id,
        videos=videos,
        video=shown,
        history=history,
        failures=failures,
        causes=causes,
        facts={name: catalog[0][name] for name in own} if catalog else {},
        uri=redact(catalog[0]["uri"] or "") if catalog else "",
        in_catalog=bool(catalog),
    )


def _picture(site: Site, request: Request) -> Response:
    video_id, model = _video_id(request), request.query_params.get("model")
    with site.pages.session() as session:
        video = find_video(session, video_id, model)
    # Other pages need not wait while frames are fetched and decoded.
    buffer = io.BytesIO()
    draw_video(video, site.storage).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


def _media(site: Site, request: Request) -> Response:
    video_id = _video_id(request)
    with site.pages.session() as session:
        uri = find_uri(session, video_id)
    if uri is None:
        raise HTTPException(404, f"There is no scored video {video_id!r} in these tables.")
    return serve_bytes(uri, site.storage, request.headers.get("range"), request.method == "HEAD")


def _sql(site: Site, request: Request) -> Response:
    text = request.query_params.get("q", "").strip()
    answer, error = None, ""
    with site.queries.session() as session:
        views = list_view_columns(session)
        if text:
            try:
                answer = session.sql(text)
            except SpecError as rejected:
                error = str(rejected)
    columns: dict[str, list[str]] = {}
    for row in views:
        columns.setdefault(row["view"], []).append(row["column"])
    rows = [] if answer is None else [list(row) for row in zip(*_texts(answer.slice(0, MAX_SQL_ROWS)), strict=True)]
    return _page(
        site,
        "sql.html.j2",
        request,
        models=[],
        model=None,
        text=text,
        error=error,
        names=[] if answer is None else answer.column_names,
        rows=rows,
        num_rows=None if answer is None else answer.num_rows,
        limit=MAX_SQL_ROWS,
        views=columns,
    )


def _sql_csv(site: Site, request: Request) -> Response:
    with site.queries.session() as session:
        answer = session.sql(request.query_params.get("q", ""))
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(_texts(answer), names=_unique(answer.column_names)), buffer)
    headers = {"Content-Disposition": 'attachment; filename="answer.csv"'}
    return Response(buffer.getvalue(), media_type="text/csv", headers=headers)


def _models(site: Site, request: Request) -> tuple[list[Model], Model | None]:
    models = site.pages.cached(("models",), overview.list_scored_models)
    return models, overview.select_model(models, request.query_params.get("model") or None)


def _video_id(request: Request) -> str:
    video_id = request.query_params.get("id")
    if not video_id:
        raise SpecError("The address names no video: expected ?id=VIDEO.")
    return video_id


def _chosen(videos: list[VideoMaps], name: str | None) -> VideoMaps | None:
    """Return the video as the model `name` scored it; by default as the first model with maps did."""
    if name is not None and name not in {video.model_name for video in videos}:
        raise SpecError(f"The model {name!r} has no score of this video.")
    named = [video for video in videos if video.model_name == name]
    with_maps = [video for video in videos if any(moment.texture is not None for moment in video.moments)]
    return next(iter([*named, *with_maps, *videos]), None)


def _texts(answer: pa.Table) -> list[list[str | None]]:
    """Return the columns of an answer as texts; None stays None."""
    return [[None if value is None else _text(value) for value in column.to_pylist()] for column in answer.columns]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _unique(names: list[str]) -> list[str]:
    return [name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names)]


def _page(site: Site, template: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
    text = (
        make_environment(_own)
        .get_template(template)
        .render(tables=site.name, path=request.url.path, charts=charts, version=__version__, **values)
    )
    return HTMLResponse(text, status)


def _error(site: Site, status: int, request: Request, error: Exception) -> Response:
    """Return the page of an error; a short text where a browser shows no page, as for a picture."""
    message = redact(error.detail if isinstance(error, HTTPException) else str(error))
    if request.url.path in ("/picture.png", "/media", "/sql.csv"):
        return PlainTextResponse(f"{message}\n", status)
    return _page(site, "error.html.j2", request, status, models=[], model=None, message=message)


def _static(kind: str, read: Callable[[], str], request: Request) -> Response:
    return Response(read(), media_type=kind, headers={"Cache-Control": "private, max-age=600"})


def _own(name: str) -> str:
    return (resources.files("kvq_batch.serve") / "templates" / name).read_text(encoding="utf-8")
