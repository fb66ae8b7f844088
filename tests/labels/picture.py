"""A picture of the page with candidates in it, in a real browser; its labels are made up, and thrown away.

python -m tests.labels.picture candidates.jsonl docs/labels.png
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import chromium, until
from tests.labels.serving import serving


def label(served, count, pause):
    """Prefer the longer side, with a mistake now and then."""
    pair = served.ask("next", "picture")["pair"]
    for _ in range(count):
        longer = "AB"[len(pair["right"]) > len(pair["left"])]
        choice = longer if chance.random() < 0.88 else chance.choice("AB=")
        pair = served.choose(pair, choice, "picture")["pair"]
        time.sleep(pause)
    served.ask("leave", "picture")


if __name__ == "__main__":
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, chromium(1000, 800) as browser:
        files = sys.argv[1], Path(folder) / "prefs.jsonl", "--repeat", 3
        with serving(*files) as served:
            label(served, 66, 0)
            served.end()
        with serving(*files) as served:
            label(served, 7, 3)
            browser.get(served.url)
            until(browser, "shown !== null")
            browser.execute_script("document.querySelector('details').open = true")
            browser.save_screenshot(sys.argv[2])
