"""Colours and chart settings for light pages, dark ones and print: Okabe-Ito, safe for colour-blind readers."""

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A500"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def config(text: str, faint: str, grid: str, background: str | None) -> dict:
    """Vega-Lite settings in these colours."""
    label = {"labelColor": text, "titleColor": text, "labelFont": FONT, "titleFont": FONT, "labelFontSize": 11}
    return {
        "background": background,
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**label, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": grid, "domainColor": faint,
                 "tickColor": faint, "labelOverlap": "greedy"},
        "axisX": {"grid": False},
        "legend": {**label, "titleFontSize": 11, "titleFontWeight": "normal", "labelLimit": 260, "orient": "top",
                   "direction": "horizontal", "columns": 3, "symbolStrokeWidth": 2.5, "symbolOpacity": 1,
                   "title": None},
        "header": {"labelColor": text, "titleColor": text, "labelFont": FONT, "labelFontSize": 12},
        "title": {"color": text, "font": FONT, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "line": {"strokeWidth": 2.2},
        "range": {"category": COLOURS, "heatmap": {"scheme": "viridis"}},
    }  # fmt: skip


LIGHT = config("#222222", "#888888", "#e3e3e3", None)
DARK = config("#e8e8e8", "#999999", "#3a3a3a", None)
PRINT = config("#000000", "#555555", "#dddddd", "#ffffff")
