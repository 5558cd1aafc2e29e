"""A real browser for tests of pages.

With SCREENSHOTS=docs/images in the environment the pictures of the documentation are taken anew.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
PATIENCE_MS = 120_000


def find_chrome() -> str | None:
    """Path of a browser; None where there is none, which CI does not allow."""
    chrome = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not chrome:
        assert not os.environ.get("CI"), (
            "CI needs a Chromium: set CHROME to it or install Debian's chromium"
        )
        return None
    return chrome


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chrome(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        # The invitation that Dagster shows to a new browser.
        page.add_init_script("localStorage.setItem('communityNux', '1')")
        yield page
        browser.close()


def take_picture(page: Page, name: str) -> None:
    """Keep what the page shows, where somebody asked for it."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.wait_for_timeout(2000)
        page.screenshot(path=Path(folder) / name)
