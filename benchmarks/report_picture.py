"""The README's picture: the first page of a report, as headless Chromium shows it.

make demo && python -m benchmarks.report_picture runs/demo/report.html
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.browser import find_chromium

PICTURE = Path(__file__).parent / "results" / "report.png"
_WINDOW = (1000, 1250)


def main() -> None:
    """Take the picture."""
    browser = find_chromium()
    if len(sys.argv) != 2 or browser is None:
        sys.exit("usage: python -m benchmarks.report_picture REPORT.html   (needs Chromium)")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--hide-scrollbars", f"--window-size={_WINDOW[0]},{_WINDOW[1]}", f"--screenshot={shot}",
                Path(sys.argv[1]).resolve().as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(shot).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
