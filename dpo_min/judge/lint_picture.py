"""The picture of a data check: what was found, and what length alone says about the label."""

import numpy as np

from dpo_min.system.picture import picture, pyplot, save

plt = pyplot()


@picture
def draw_report(report, findings, path):
    """Draw a `dpo_min.judge.lint.Report` as a PNG; `findings`: code → (whether it is an error, what it is)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    codes = [code for code in findings if report.counts[code]][::-1]
    numbers, errors = [report.counts[code] for code in codes], [findings[code][0] for code in codes]
    colours, hatches = ["tab:red" if e else "0.6" for e in errors], ["//" if e else "" for e in errors]
    bars = left.barh(codes, numbers, color=colours, hatch=hatches, edgecolor="white")
    left.bar_label(bars, padding=3)
    left.set(xlabel="findings")
    left.set_title(f"{report.rows} rows: {report.errors} errors (red, hatched), the rest warnings", fontsize=10)
    left.margins(x=0.15)
    gaps, rows = report.lengths.gaps(), report.lengths.bins
    seen = np.flatnonzero(rows)
    if len(seen):
        edge = max(abs(gaps[seen[[0, -1]]]).max(), 0.5)
        right.bar(gaps, rows, width=report.lengths.WIDTH, color=np.where(gaps > 0, "tab:blue", "tab:orange"))
        right.axvline(0, color="black", linewidth=1)
        right.set_xlim(-edge, edge)
        share, _ = report.lengths.explained()
        right.set_title(f"length alone explains {share:.1%} of the preference", fontsize=10)
    right.set(xlabel="log(tokens of chosen / rejected); right of 0 the longer is chosen", ylabel="rows")
    save(figure, path)
