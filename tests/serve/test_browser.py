"""The pages in a real browser: no problem in the console, no accessibility finding, no page wider than a phone."""

import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.serve.conftest import HOSTILE, Running
from tests.support.browser import Visit
from tests.support.scored import VIDEO

pytestmark = pytest.mark.browser

PAGES = [
    "/",
    "/videos?model=kvq-tiny",
    f"/video?id={quote(VIDEO, safe='')}",
    "/sql?q=SELECT+video_id,mos,raw_score+FROM+scores_latest+LIMIT+5",
    "/sql?q=nonsense",
]


@pytest.mark.parametrize("target", PAGES)
def test_pages_have_no_problem(server: Running, browser: Any, target: str) -> None:
    for size, scheme in (("desktop", "light"), ("phone", "dark")):
        visit = Visit(browser, server.url + target, size, scheme)
        visit.page.wait_for_load_state("networkidle")
        assert visit.problems == []
        assert visit.accessibility_findings() == []
        assert not visit.is_wider_than_the_screen()
        assert all(url.startswith(server.url) for url in visit.requests)
        visit.close()


def test_a_user_finds_a_video_by_its_id(server: Running, browser: Any) -> None:
    visit = Visit(browser, f"{server.url}/videos?model=kvq-tiny")
    visit.page.get_by_label("id contains").fill("none-0")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("link", name=VIDEO).click()
    wait_for(visit, "document.getElementById('player').duration > 0")
    picture = visit.page.get_by_role("img", name="Frames of the worst moments")
    picture.scroll_into_view_if_needed()
    wait_for(visit, "document.querySelector('img.maps').naturalWidth > 0")
    assert visit.problems == []
    visit.close()


def wait_for(visit: Visit, condition: str) -> None:
    """Wait until a condition of the page holds. Its policy forbids `wait_for_function`, which evaluates text."""
    deadline = time.monotonic() + 30
    while not visit.page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        visit.page.wait_for_timeout(50)


def test_hostile_id_runs_nothing(server: Running, browser: Any) -> None:
    visit = Visit(browser, f"{server.url}/video?id={quote(HOSTILE, safe='')}")
    assert visit.page.get_by_role("heading", level=1).inner_text() == HOSTILE
    assert not [problem for problem in visit.problems if problem.startswith("dialog")]
    visit.close()
