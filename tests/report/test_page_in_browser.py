"""The HTML report in Chromium: no error, no request, accessible, usable by mouse, keyboard and phone."""

from pathlib import Path
from typing import Any

import pytest

from kvq_batch.report.page import ReportOptions, write_report
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.support.browser import Visit
from tests.support.hostile import VIDEOS, make_hostile
from tests.support.results import KVQ
from tests.support.scored import make_scored

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the URLs of two reports: one with frames, and one with scripts in every text."""
    folder = tmp_path_factory.mktemp("reports")
    tables = {"frames": make_scored(folder / "scored").tables, "hostile": str(folder / "hostile")}
    make_hostile(tables["hostile"])
    urls = {}
    for name, uri in tables.items():
        options = ReportOptions(model=KVQ.name if name == "frames" else None)
        with open_session(uri) as session:
            write_report(session, StorageOptions(), uri, folder / f"{name}.html", options)
        urls[name] = (folder / f"{name}.html").as_uri()
    return urls


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        ("frames", "desktop", "light"),
        ("frames", "desktop", "dark"),
        ("frames", "phone", "light"),
        ("frames", "phone", "dark"),
        ("hostile", "phone", "light"),
    ],
)
def test_page_loads_nothing_and_is_accessible(
    browser: Any, pages: dict[str, str], name: str, size: str, scheme: str
) -> None:
    visit = Visit(browser, pages[name], size, scheme)
    assert visit.accessibility_findings() == []
    assert not visit.is_wider_than_the_screen()
    assert visit.problems == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [pages[name]]
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    visit.close()


def test_axe_finds_what_is_wrong(browser: Any, pages: dict[str, str]) -> None:
    visit = Visit(browser, pages["frames"])
    visit.page.evaluate("document.querySelector('img').removeAttribute('alt')")
    assert [finding.split(":")[0] for finding in visit.accessibility_findings()] == ["image-alt"]
    visit.close()


def test_videos_are_filtered_and_ordered(browser: Any, pages: dict[str, str]) -> None:
    visit = Visit(browser, pages["hostile"])
    page = visit.page
    ids = page.locator(".video:visible h3")
    scores = [float(value) for value in page.eval_on_selector_all(".video", "all => all.map(v => v.dataset.quality)")]
    assert scores == sorted(scores)
    page.select_option("#order", "quality down")
    worst_first = page.eval_on_selector_all(".video", "all => all.map(v => v.dataset.quality)")
    assert [float(value) for value in worst_first] == sorted(scores, reverse=True)
    page.fill("[data-filters=videos]", "  7.MP4 ")
    assert ids.all_inner_texts() == [VIDEOS[7]]
    assert page.inner_text("#shown-videos") == f"1 of {len(VIDEOS)} shown"
    assert visit.problems == []
    visit.close()


def test_tables_are_sorted_with_the_keyboard(browser: Any, pages: dict[str, str]) -> None:
    visit = Visit(browser, pages["hostile"])
    page = visit.page
    table = page.locator("#segments table").first
    table.locator("th button").nth(3).focus()
    page.keyboard.press("Enter")
    heads = table.locator("th")
    assert heads.nth(3).get_attribute("aria-sort") == "ascending"
    medians = [float(text) for text in table.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert medians == sorted(medians)
    page.keyboard.press("Enter")
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    medians = [float(text) for text in table.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert medians == sorted(medians, reverse=True)
    visit.close()


def test_overlays_are_chosen(browser: Any, pages: dict[str, str]) -> None:
    visit = Visit(browser, pages["frames"])
    page = visit.page
    cells = page.locator(".frame .quality").first
    assert not cells.is_visible()
    page.check("#show-quality")
    assert cells.is_visible()
    assert not page.locator(".frame .saliency").first.is_visible()
    # The cells lie exactly over the frame.
    frame = page.locator(".frame > img").first.bounding_box()
    assert cells.bounding_box() == {key: pytest.approx(value, abs=0.5) for key, value in frame.items()}
    visit.close()


def test_skip_link_is_the_first_stop_of_the_keyboard(browser: Any, pages: dict[str, str]) -> None:
    visit = Visit(browser, pages["frames"], "phone")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.page.keyboard.press("Enter")
    assert Path(visit.page.url).name == "frames.html#main"
    visit.close()
