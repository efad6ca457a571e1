"""A real browser for pages of the project: Debian's chromium, driven by playwright, without any network."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The browser asks nobody for anything: no updates, no sync, no component downloads.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def chromium() -> str | None:
    """Return the path of the browser, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield a running browser (playwright.sync_api.Browser).

    While it runs, the thread has an event loop, so that `asyncio.run` fails: it must end with the module.
    """
    path = chromium()
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield running
        running.close()


class Visit:
    """One page that was opened, and what went wrong on it: `problems` must stay empty."""

    def __init__(self, browser: Any, url: str, size: str = "desktop", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def _dismiss(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def is_wider_than_the_screen(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def accessibility_findings(self) -> list[str]:
        """Return serious and critical findings of axe-core, with the first element of each."""
        import axe_playwright_python

        # The page forbids scripts, so axe is run from outside of its policy.
        source = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
        session = self.page.context.new_cdp_session(self.page)
        session.send("Runtime.evaluate", {"expression": source})
        result = session.send(
            "Runtime.evaluate",
            {
                "expression": "axe.run({resultTypes: ['violations']}).then(r => r.violations.filter(v => "
                "['serious', 'critical'].includes(v.impact)).map(v => `${v.id}: ${v.nodes[0].html} "
                "${v.nodes[0].failureSummary}`))",
                "awaitPromise": True,
                "returnByValue": True,
            },
        )
        findings: list[str] = result["result"]["value"]
        return findings

    def close(self) -> None:
        self.page.close()
