"""The interactive page: writes explainer.html, one file that needs nothing from outside it.

    python -m experiments.explainer [--out docs]

The numbers come from explainer_numbers.py, the losses' formulas from the tables of the package by javascript.py; the
page itself, its style and its script are explainer.html, .css and .js beside this file.
"""

import argparse
import json
from pathlib import Path

from dpo_min.system.files import write_text
from experiments import explainer_numbers, javascript

HERE = Path(__file__).parent
DIGITS = 10  # significant ones of a written number


def shorten(value):
    """The same JSON value with every float at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: shorten(part) for key, part in value.items()}
    return [shorten(part) for part in value] if isinstance(value, list | tuple) else value


def page(numbers):
    """The text of explainer.html with these numbers."""
    parts = {
        "style": (HERE / "explainer.css").read_text(encoding="utf-8"),
        "script": (HERE / "explainer.js").read_text(encoding="utf-8"),
        "losses": javascript.losses(),
        "numbers": json.dumps(shorten(numbers), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"),
    }
    text = (HERE / "explainer.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main():
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write the interactive page.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder of explainer.html")
    path = parser.parse_args().out / "explainer.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(explainer_numbers.numbers()))
    print(f"written: {path}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
