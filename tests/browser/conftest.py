"""One JupyterLab and one Chromium for all the tests of a file; a page, a kernel and copies of the lessons for each.

Not for the whole session: while Playwright's event loop runs in this thread, nobody else's can.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from benchmarks.browser import Notebook, Server, find_chromium, open_chromium
from dfqlab.lessons import copy_lessons, find_lesson

OpenLesson = Callable[[str], Notebook]
_SEEN = pytest.StashKey[tuple[Page, Path]]()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        missing = "no Chromium to drive: install one (Debian and Ubuntu: apt install chromium)"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(missing)
        pytest.skip(missing)
    with open_chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """What pages share: JupyterLab's files, once they are fetched."""
    return browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server.start(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def open_lesson(
    context: BrowserContext, server: Server, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[OpenLesson]:
    """Opens a learner's copy of a lesson, by its id, on a page of its own."""
    folder = re.sub(r"\W+", "-", request.node.name)
    copy_lessons(server.folder / folder)
    page = context.new_page()
    request.node.stash[_SEEN] = (page, tmp_path / "page.png")
    yield lambda id: Notebook(page, server, f"{folder}/{find_lesson(id).file}")
    page.close()
    server.end_kernels()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test that fails says where a picture of the page lies."""
    try:
        return (yield)
    except Exception as error:
        if _SEEN in pyfuncitem.stash:
            page, picture = pyfuncitem.stash[_SEEN]
            page.screenshot(path=picture)
            error.add_note(f"What the page showed: {picture}")
        raise
