"""The README's picture of a widget: the integer grid of lesson 01, as JupyterLab shows it.

python -m benchmarks.lesson_picture
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from benchmarks.browser import MILLISECONDS, Notebook, Server, find_chromium, open_chromium
from dfqlab.lessons import copy_lessons, find_lesson

PICTURE = Path(__file__).parent / "results" / "widget.png"
_WINDOW = (1320, 1000)
_MARGIN = 14


def main() -> None:
    """Take the picture."""
    executable = find_chromium()
    if len(sys.argv) != 1 or executable is None:
        sys.exit("usage: python -m benchmarks.lesson_picture   (needs Chromium)")
    with (
        tempfile.TemporaryDirectory() as name,
        open_chromium(executable) as browser,
        Server.start(Path(name)) as server,
    ):
        copy_lessons(server.folder)
        page = browser.new_page(viewport={"width": _WINDOW[0], "height": _WINDOW[1]})
        lesson = Notebook(page, server, find_lesson("01").file)
        lesson.run_all_above("l01-widget")
        lesson.run("l01-widget")
        widget = lesson.outputs("l01-widget").first
        expect(widget.get_by_role("img")).to_be_visible(timeout=MILLISECONDS)
        lesson.wait_for_kernel()
        for slider, steps in zip(widget.get_by_role("slider").all(), (1, 8), strict=True):  # 3 bits, clip 60 %
            for _ in range(steps):
                slider.press("ArrowLeft")
        expect(widget.get_by_role("status")).to_contain_text(
            "3 bits, symmetric, per tensor, clip 60 %", timeout=MILLISECONDS
        )
        lesson.select("l01-title")  # the frame of the selected cell is not for the picture
        widget.scroll_into_view_if_needed()
        shot = Image.open(io.BytesIO(widget.screenshot()))
    with_margin = Image.new("RGB", (shot.width + 2 * _MARGIN, shot.height + 2 * _MARGIN), "white")
    with_margin.paste(shot, (_MARGIN, _MARGIN))
    with_margin.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {with_margin.width} x {with_margin.height} pixels, {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
