"""A JupyterLab that knows nothing of its user, and a headless Chromium that looks at it.

The browser tests and the README's picture of a widget are made with it. A notebook is handled as a learner handles it:
by menus, keys, and what can be read on the page.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ipykernel.kernelspec import get_kernel_dict
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SECONDS = 60.0  # what a busy machine may take for anything
MILLISECONDS = 1000 * SECONDS
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run")
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
_TEST_RUN = ("COVERAGE", "PYTEST_", "PYTHONWARNINGS", "JUPYTER")  # settings that are not for the server


def find_chromium() -> str | None:
    """Where Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, _CHROMIUM)), None)


@contextmanager
def open_chromium(executable: str) -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Server:
    """A JupyterLab that runs."""

    url: str
    token: str
    folder: Path

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[Self]:
        """Serve a folder to this machine alone, with kernels of this Python, until the block ends."""
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            _write(home / "data/kernels/python3/kernel.json", get_kernel_dict())
            settings = home / "settings/@jupyterlab"
            _write(settings / "apputils-extension/notification.jupyterlab-settings", {"fetchNews": "false"})
            log, token = home / "log", secrets.token_hex(16)
            with log.open("wb") as written:
                process = subprocess.Popen(
                    [
                        sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={folder}",
                        "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--allow-root",
                    ],
                    env=_environment(home, token), stdin=subprocess.DEVNULL, stdout=written, stderr=written,
                    start_new_session=True,
                )  # fmt: skip
            try:
                yield cls(_wait_for_url(process, home / "runtime", log), token, folder)
            finally:
                _end(process)

    def ask(self, method: str, path: str) -> Any:
        """What the server's own interface answers."""
        request = urllib.request.Request(
            f"{self.url}api/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with _DIRECTLY.open(request, timeout=SECONDS) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def end_kernels(self) -> None:
        """Shut down every kernel."""
        for kernel in self.ask("GET", "kernels"):
            self.ask("DELETE", f"kernels/{kernel['id']}")


class Notebook:
    """A notebook of a server's folder, on a page of a browser.

    Args:
        path: relative to the folder.
    """

    def __init__(self, page: Page, server: Server, path: str) -> None:
        self.page = page
        self.server = server
        self.path = path
        cells = json.loads((server.folder / path).read_text(encoding="utf-8"))["cells"]
        self._numbers = {cell["id"]: number for number, cell in enumerate(cells)}
        self.open()

    def open(self) -> None:
        """Open it, or open it again, and wait until its cells are there."""
        self.page.goto(f"{self.server.url}lab/tree/{self.path}?token={self.server.token}&reset")
        expect(self.status_bar).to_contain_text(f"Cell 1/{len(self._numbers)}", timeout=MILLISECONDS)
        self.wait_for_kernel()

    @property
    def status_bar(self) -> Locator:
        """The line at the foot of the page."""
        return self.page.locator("#jp-main-statusbar")

    def wait_for_kernel(self) -> None:
        """Wait until the kernel has nothing to do."""
        expect(self.status_bar).to_contain_text("Python 3 (ipykernel) | Idle", timeout=MILLISECONDS)

    def cell(self, id: str) -> Locator:
        """A cell, by its id."""
        return self.page.locator(f'.jp-Cell[data-windowed-list-index="{self._numbers[id]}"]')

    def outputs(self, id: str) -> Locator:
        """What a cell shows."""
        return self.cell(id).locator(".jp-OutputArea-output")

    def select(self, id: str) -> None:
        """Make a cell the one that Run runs."""
        self.cell(id).locator(".jp-InputPrompt, .jp-InputArea").first.click()

    def menu(self, *names: str) -> None:
        """Choose a command by the words on the menu bar and its menus."""
        self.page.get_by_role("menubar").get_by_role("menuitem", name=names[0], exact=True).click()
        for name in names[1:]:
            self.page.get_by_role("menuitem", name=name, exact=True).click()

    def run(self, id: str) -> None:
        """Run one cell."""
        self.select(id)
        self.page.keyboard.press("Control+Enter")

    def write(self, id: str, code: str) -> None:
        """Type into a cell in place of what it has; the editor indents what stands behind a colon."""
        self.cell(id).get_by_role("textbox").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(code)

    def save(self) -> None:
        """Save it, and wait until it is."""
        self.page.keyboard.press("Control+s")
        expect(self.page.locator(".jp-mod-dirty")).to_have_count(0, timeout=MILLISECONDS)

    def run_all_above(self, id: str) -> None:
        """Run every cell above one."""
        self.select(id)
        self.menu("Run", "Run All Above Selected Cell")


def _environment(home: Path, token: str) -> dict[str, str]:
    """What this process has, without a trace of the user's Jupyter and with nothing of the tests'."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_TEST_RUN)}
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    ours = {name: str(home / folder) for name, folder in places.items()}
    # The user's folders first: the kernel of `home` goes before one that the system may have under its name.
    return kept | ours | {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "0", "JUPYTER_PLATFORM_DIRS": "1"}


def _wait_for_url(process: "subprocess.Popen[bytes]", runtime: Path, log: Path) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for file in runtime.glob(f"jpserver-{process.pid}.json"):
            try:
                url = str(json.loads(file.read_text(encoding="utf-8"))["url"])
                _DIRECTLY.open(f"{url}api", timeout=SECONDS).close()
                return url
            except (ValueError, urllib.error.URLError):  # half written, or not listening yet
                pass
        time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server, which ends its kernels, and then whatever is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
