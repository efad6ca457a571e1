"""What the pages say, compared with the tables."""

import html
import json
import re
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from kvq_batch.cli.app import app
from kvq_batch.serve import live
from kvq_batch.serve.listing import PAGE_ROWS
from kvq_batch.serve.pages import create_app
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.serve.conftest import FAILED, HOSTILE, REMOVED, Running, running
from tests.support.results import KVQ, make_batch
from tests.support.scored import BROKEN, VIDEO, Scored, make_scored

PAGES = [
    "/",
    "/videos",
    f"/video?id={quote(HOSTILE, safe='')}",
    f"/video?id={quote(FAILED, safe='')}",
    "/sql?q=FROM+catalog",
]


def ids_of(text: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'<a class="id"[^>]*>([^<]*)</a>', text)]


@pytest.mark.parametrize("target", PAGES)
def test_texts_of_the_catalog_are_escaped(server: Running, target: str) -> None:
    answer = server.get(target)
    assert answer.status == 200
    assert re.findall(r"<script(?! src=\"/\w+\.js\" defer></script>)", answer.text) == []
    assert HOSTILE not in answer.text
    assert "<img src=x" not in answer.text
    assert "<b>failed" not in answer.text


def test_list_is_sorted_and_paged_by_the_database(server: Running, scored: Scored) -> None:
    with open_session(scored.tables) as session:
        rows = session.sql(
            "SELECT video_id FROM scores_latest SEMI JOIN catalog USING (video_id) WHERE model_name = 'kvq-tiny' "
            "ORDER BY raw_score, video_id"
        )
    expected = rows["video_id"].to_pylist()
    assert len(expected) == 62
    first, second = (server.get(f"/videos?model=kvq-tiny&page={page}").text for page in (1, 2))
    assert (ids_of(first), ids_of(second)) == (expected[:PAGE_ROWS], expected[PAGE_ROWS:])
    assert ids_of(server.get("/videos?model=kvq-tiny&sort=best").text) == expected[::-1][:PAGE_ROWS]
    # A page behind the last one leads to the last one.
    answer = server.get("/videos?model=kvq-tiny&page=9")
    assert (answer.status, answer.headers["Location"]) == (307, "/videos?model=kvq-tiny&sort=worst&page=2")


def test_search_and_condition(server: Running) -> None:
    found = ids_of(server.get("/videos?model=kvq-tiny&search=MANY%2F0&sort=id").text)
    assert found == [f"many/{i:02}.mp4" for i in range(10)]
    found = ids_of(
        server.get("/videos?model=kvq-tiny&where=video_id+%3E+%27many%2F57%27+AND+starts_with(video_id,+%27m%27)").text
    )
    assert sorted(found) == ["many/57.mp4", "many/58.mp4", "many/59.mp4"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("where=1)+OR+(1%3D1", "condition"),
        ("where=nothing+%3D+1", "nothing"),
        ("where=(SELECT+count(*)+FROM+read_csv('/etc/passwd'))>0", "read_csv"),
        ("sort=random", "Orders: worst, best"),
        ("page=0", "numbered from 1"),
        ("page=x", "not a number"),
        ("model=nothing", "no current scores of model"),
    ],
)
def test_wrong_selection_is_explained(server: Running, query: str, message: str) -> None:
    answer = server.get(f"/videos?{query}")
    assert answer.status == 400
    assert message in html.unescape(answer.text)


def test_video_shows_scores_failures_and_catalog(server: Running) -> None:
    text = server.get(f"/video?id={quote(VIDEO, safe='')}").text
    assert "kvq-tiny@1-0123456789ab" in text
    assert "random weights" in text
    assert "/picture.png?id=" in text
    text = server.get(f"/video?id={quote(FAILED, safe='')}").text
    assert "the decoder was ended by a signal" in text
    text = server.get(f"/video?id={REMOVED}").text
    assert "no longer has this video" in text
    assert "kvq-tiny@1-0123456789ab" in text


def test_picture_is_a_png(server: Running) -> None:
    answer = server.get(f"/picture.png?id={quote(VIDEO, safe='')}&model=kvq-tiny")
    assert (answer.status, answer.headers["Content-Type"], answer.body[:8]) == (200, "image/png", b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("target", ["/video?id=nothing", "/media?id=nothing", "/nothing", "/../../etc/passwd"])
def test_unknown_addresses_are_404(server: Running, target: str) -> None:
    assert server.get(target).status == 404


def test_sql_answers_and_csv(server: Running) -> None:
    query = quote("SELECT 1.5 AS a, NULL AS b, '<i>' AS c, 2 AS a")
    text = server.get(f"/sql?q={query}").text
    assert [html.unescape(cell) for cell in re.findall(r'<td class="text">([^<]*)</td>', text)] == [
        "1.5",
        "NULL",
        "<i>",
        "2",
    ]
    answer = server.get(f"/sql.csv?q={query}")
    assert answer.text.splitlines()[1:] == ['"1.5",,"<i>","2"']
    assert len(set(json.loads(f"[{answer.text.splitlines()[0]}]"))) == 4


@pytest.mark.parametrize(
    "text",
    ["DROP VIEW scores", "COPY (SELECT 1) TO '/tmp/x'", "SELECT * FROM read_text('/etc/passwd')", "SELECT 1; SELECT 2"],
)
def test_sql_only_reads_the_views(server: Running, text: str) -> None:
    answer = server.get(f"/sql?q={quote(text)}")
    assert 'role="alert"' in answer.text
    assert "root:" not in answer.text
    assert server.get(f"/sql.csv?q={quote(text)}").status == 400


def test_pages_survive_compaction(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CHECK_INTERVAL_S", 0.0)
    made = make_scored(tmp_path_factory.mktemp("compacted"))
    made.writer.commit(make_batch(["landscape/more.mp4"], KVQ))
    with running(create_app(made.tables, StorageOptions())) as server:
        address = f"/video?id={quote(VIDEO, safe='')}"
        before = server.get(address)
        result = CliRunner().invoke(app, ["tables", "compact", made.tables])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(app, ["tables", "vacuum", made.tables, "--retention", "0d", "--delete", "--force"])
        assert result.exit_code == 0, result.output
        after = server.get(address)
        assert (before.status, after.status) == (200, 200)
        assert after.text == before.text


def test_new_commits_are_shown(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CHECK_INTERVAL_S", 0.0)
    made = make_scored(tmp_path_factory.mktemp("growing"))
    with running(create_app(made.tables, StorageOptions())) as server:
        assert ids_of(server.get("/videos?model=kvq-tiny").text) == [VIDEO]
        with open_session(made.tables) as session:
            before = session.sql("SELECT count(*) AS n FROM scores")["n"][0].as_py()
            content = session.sql(f"SELECT content_id FROM catalog WHERE video_id = '{BROKEN}'")["content_id"][
                0
            ].as_py()
        made.writer.commit(make_batch([BROKEN], KVQ, content))
        assert set(ids_of(server.get("/videos?model=kvq-tiny").text)) == {VIDEO, BROKEN}
        assert f'<td class="text">{before + 1}</td>' in server.get("/sql?q=SELECT+count(*)+FROM+scores").text
