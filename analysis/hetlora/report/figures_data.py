"""The figure of the report about the data: which client has which labels."""

from hetlora.report import rows
from hetlora.report.figures import GRADIENT, MOST_PANELS, Figure, _axis, _spec
from hetlora.report.rows import Method

MOST_CLIENTS = 120
CELL = 16  # pixels of a label's line


def labels_by_client(methods: list[Method]) -> Figure | None:
    """Heat map: label by client; one panel for each partition that differs."""
    values = rows.label_counts(methods[:MOST_PANELS], MOST_CLIENTS)
    if not values:
        return None
    hashes: dict[object, str] = {}
    for method in methods[:MOST_PANELS]:
        if any(row["method"] == method.label for row in values):
            hashes.setdefault(method.first.provenance.get("partition_sha256", method.label), method.label)
    shown = list(hashes.values())
    specs = []
    for name in shown:
        own = [row for row in values if row["method"] == name]
        n_labels = len({row["label"] for row in own})
        spec = _spec(
            own,
            mark={"type": "rect", "clip": True},
            encoding={
                "x": _axis("place", "clients, largest first", "ordinal",
                          axis={"labels": False, "ticks": False}),
                "y": _axis("label", None, "nominal", axis={"labelLimit": 160, "labelOverlap": False}),
                "color": _axis("share", "share", legend=GRADIENT,
                               scale={"type": "sqrt", "scheme": "viridis", "domain": [0, 1]}),
                "tooltip": [_axis("client", "client"), _axis("label", "label", "nominal"),
                            _axis("sequences", "training sequences"), _axis("share", "share of the client's")],
            },
        )  # fmt: skip
        spec["height"] = max(60, CELL * n_labels)
        specs.append({**spec, "title": name} if len(shown) > 1 else spec)
    digest = next(iter(hashes))
    note = (
        "Share of the client's training sequences. Empty: the client has none of the label. Columns that look alike: "
        "clients that are alike."
    )
    if len(shown) == 1 and isinstance(digest, str) and len(digest) == 64:
        note += f" Hash of the partition: {digest[:12]}."
    return Figure("labels-by-client", "Which client has what", note, specs, wide=True)
