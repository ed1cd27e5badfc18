"""The figures of the report as Vega-Lite specifications: hover shows numbers, a click in a legend hides the others."""

from collections.abc import Callable
from dataclasses import dataclass

from hetlora.headline import Headline, headline
from hetlora.report import rows
from hetlora.report.rows import Method
from hetlora.report.theme import COLOURS, DASHES

HEIGHT = 280
GRADIENT = {
    "orient": "top",
    "direction": "horizontal",
    "gradientLength": 150,
    "gradientThickness": 9,
    "titleOrient": "left",
}
MOST_PANELS = 6
MOST_BANDS = 4
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Figure:
    """`key` names its files and its place in the page, `note` says how to read it; one or
    more charts of the same kind, `wide` ones over the whole page."""

    key: str
    title: str
    note: str
    specs: list[dict]
    wide: bool = False


def all_figures(methods: list[Method]) -> list[Figure]:
    """Every figure for which something was measured, in the order of the page."""
    makers: list[Callable[[list[Method]], Figure | None]] = [
        perplexity, perplexity_by_bytes, training_loss, alive_slots, effective_rank, weight_by_rank, client_fairness,
        budget_of_time, energy_of_slots, ranks_over_time, collapse_by_layer,
    ]  # fmt: skip
    from hetlora.report.figures_data import labels_by_client  # which build on this module
    from hetlora.report.figures_tasks import task_metrics

    makers += [task_metrics, labels_by_client]
    return [figure for figure in (maker(methods) for maker in makers) if figure is not None]


def _spec(values: list[dict], **parts) -> dict:
    return {"$schema": SCHEMA, "width": "container", "height": HEIGHT, "data": {"values": values}, **parts}


def _axis(field: str, title: str, kind: str = "quantitative", **more) -> dict:
    return {"field": field, "type": kind, "title": title, **more}


def _by_method(methods: list[Method]) -> dict:
    """Colour by method; dashes too where the colours come round a second time."""
    names = [method.label for method in methods]
    encoding = {
        "color": _axis(
            "method", "method", "nominal", scale={"domain": names, "range": _cycled(COLOURS, len(names))},
            legend=None if len(names) == 1 else {"title": None},
        ),
    }  # fmt: skip
    if len(names) > 1:
        dashes = [DASHES[(i // len(COLOURS)) % len(DASHES)] for i in range(len(names))]
        encoding["strokeDash"] = _axis(
            "method", "method", "nominal", scale={"domain": names, "range": dashes}, legend={"title": None}
        )
    return encoding


def _cycled(items: list, n: int) -> list:
    return [items[i % len(items)] for i in range(n)]


def _pick(methods: list[Method]) -> dict:
    """A selection bound to the legend, and the opacity that follows it; nothing for a single method."""
    if len(methods) == 1:
        return {}
    return {"params": [{"name": "pick", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}]}


def _faded(methods: list[Method], full: float = 1.0, away: float = 0.06) -> dict:
    if len(methods) == 1:
        return {"value": full}
    return {"condition": {"param": "pick", "value": full, "empty": True}, "value": away}


def _band_opacity(methods: list[Method]) -> dict:
    """Bands of many methods hide each other: those are faint until their method is picked."""
    if len(methods) <= MOST_BANDS:
        return _faded(methods, 0.18, 0.02)
    return {"condition": {"param": "pick", "value": 0.25, "empty": False}, "value": 0.04}


def _curve(methods: list[Method], column: str, title: str, **scale) -> dict | None:
    """Lines with points and bands over rounds; None where nothing was measured."""
    values = rows.curve(methods, column)
    if not values:
        return None
    x = _axis("round", "round", axis={"tickMinStep": 1})
    tooltip = [
        _axis("method", "method", "nominal"), _axis("round", "round"), _axis("mean", title),
        _axis("low", "95 % low"), _axis("high", "95 % high"), _axis("seeds", "seeds"),
    ]  # fmt: skip
    y_scale = {"zero": False, **scale} if scale.get("type") != "log" else scale
    line = {
        "mark": {"type": "line", "point": {"size": 28, "filled": True}, "interpolate": "linear"},
        "encoding": {"x": x, "y": _axis("mean", title, scale=y_scale), **_by_method(methods), "tooltip": tooltip,
                     "opacity": _faded(methods)},
        **_pick(methods),
    }  # fmt: skip
    layers = [line]
    if any(row["low"] is not None for row in values):
        colour = {"color": _by_method(methods)["color"]}
        band = {
            "mark": {"type": "area", "tooltip": False},
            "transform": [{"filter": "isValid(datum.low)"}],
            "encoding": {"x": x, "y": _axis("low", title, scale=y_scale), "y2": {"field": "high"}, **colour,
                         "opacity": _band_opacity(methods)},
        }  # fmt: skip
        layers.insert(0, band)
    return _spec(values, layer=layers)


def _seeds_note(methods: list[Method]) -> str:
    counts = {len(method.records) for method in methods}
    if counts == {1}:
        return "One seed: no interval can be drawn."
    return "Bands: 95 % interval of the mean over seeds" + (" (none where there is one seed)." if 1 in counts else ".")


def _headline(methods: list[Method]) -> Headline:
    return headline(record for method in methods for record in method.records)


def _scale(judged: Headline) -> dict:
    return {} if judged.larger_is_better else {"type": "log", "nice": False}


def perplexity(methods: list[Method]) -> Figure | None:
    """Held-out perplexity (of runs that classify: accuracy) by round."""
    judged = _headline(methods)
    spec = _curve(methods, judged.column, f"held-out {judged.name}", **_scale(judged))
    better = "Higher is better" if judged.larger_is_better else "Lower is better; logarithmic scale"
    note = f"{better}; round 0 is the base before training. " + _seeds_note(methods)
    return spec and Figure(judged.name, f"{judged.name.capitalize()} on held-out clients", note, [spec])


def training_loss(methods: list[Method]) -> Figure | None:
    """Training loss by round."""
    spec = _curve(methods, "train_loss", "training loss (nat per token)")
    note = "Mean over the local steps of the round's clients: other clients every round, so it is noisy."
    return spec and Figure("train-loss", "Training loss of the round's clients", note, [spec])


def perplexity_by_bytes(methods: list[Method]) -> Figure | None:
    """Perplexity (or accuracy) against what clients sent."""
    judged = _headline(methods)
    values = rows.against_bytes(methods, judged.column)
    if not values:
        return None
    tooltip = [
        _axis("method", "method", "nominal"), _axis("round", "round"), _axis("megabytes", "MB sent"),
        _axis("mean", judged.name),
    ]  # fmt: skip
    spec = _spec(
        values,
        mark={"type": "line", "point": {"size": 28, "filled": True}},
        encoding={
            "x": _axis("megabytes", "true bytes sent by clients so far (MB)"),
            "y": _axis("mean", f"held-out {judged.name}", scale=_scale(judged) or {"zero": False}),
            "order": {"field": "round"}, **_by_method(methods), "tooltip": tooltip, "opacity": _faded(methods),
        },
        **_pick(methods),
    )  # fmt: skip
    note = "What real clients would send, at their own lora_rank; means over seeds."
    title = f"{judged.name.capitalize()} against communication"
    return Figure(f"{judged.name}-by-bytes", title, note, [spec])


def alive_slots(methods: list[Method]) -> Figure | None:
    """Slots that can still learn."""
    spec = _curve(methods, "slots_alive", "slots that can still learn", zero=True)
    note = (
        "A slot that is zero in A and in B gets no gradient in either and never learns again. The loss does not show "
        "it. strategy.keep_uncovered = last or refill, or slot_norm = contributors, keep slots alive."
    )
    return spec and Figure("slots-alive", "Live slots of the global adapter", note, [spec])


def energy_of_slots(methods: list[Method]) -> Figure | None:
    """Heat map: slot by round, one panel per method."""
    values = rows.slot_energy(methods[:MOST_PANELS])
    if not values:
        return None
    cell = _heat(
        _axis("slot", "slot", "ordinal", axis={"labelOverlap": "greedy"}),
        _axis("energy", "share of energy", scale={"type": "sqrt", "scheme": "viridis"}),
        [_axis("method", "method", "nominal"), _axis("round", "round"), _axis("slot", "slot")],
    )
    note = "Share of the product's squared norm. Bright in the first rows only: the adapter has collapsed to these."
    note += _left_out(methods, methods[:MOST_PANELS])
    return Figure("slot-energy", "Energy of each slot", note, _panels(values, cell, methods), wide=len(methods) > 1)


def _heat(y: dict, colour: dict, tooltip: list[dict]) -> dict:
    """Cells over rounds, with the colour's value last in the tooltip."""
    shown = {key: colour[key] for key in ("field", "type", "title")}
    return {
        "mark": {"type": "rect"},
        "encoding": {
            "x": _axis("round", "round", "ordinal", axis={"labelOverlap": "greedy", "labelAngle": 0}),
            "y": y,
            "color": {**colour, "legend": GRADIENT},
            "tooltip": [*tooltip, shown],
        },
    }


def _left_out(methods: list[Method], shown: list[Method]) -> str:
    names = [method.label for method in methods if method not in shown]
    return f" Not shown: {', '.join(names)}." if names else ""


def _panels(values: list[dict], cell: dict, methods: list[Method]) -> list[dict]:
    """One chart per method, one below the other (the page is as narrow as a phone)."""
    shown = [method.label for method in methods[:MOST_PANELS]]
    if len(shown) == 1:
        return [_spec(values, **cell)]
    return [
        {**_spec([row for row in values if row["method"] == name], **cell), "title": name, "height": 150}
        for name in shown
    ]


def effective_rank(methods: list[Method]) -> Figure | None:
    """Effective rank of the global product."""
    spec = _curve(methods, "effective_rank", "effective rank", zero=True)
    note = "Participation ratio of the singular values of B A, mean over the adapted matrices; n for n equal ones."
    return spec and Figure("effective-rank", "Effective rank of the global adapter", note, [spec])


def ranks_over_time(methods: list[Method]) -> Figure | None:
    """Heat map: how many clients hold each lora_rank."""
    values = rows.lora_ranks(methods[:MOST_PANELS])
    levels = {
        name: {row["lora_rank"] for row in values if row["method"] == name} for name in {r["method"] for r in values}
    }
    equal = [method.label for method in methods if len(levels.get(method.label, ())) == 1]
    methods = [method for method in methods if len(levels.get(method.label, ())) > 1]
    if not methods:
        return None
    cell = _heat(
        _axis("lora_rank", "lora_rank", "ordinal", sort="descending", axis={"labelOverlap": "greedy"}),
        _axis("clients", "clients", scale={"type": "log", "scheme": "viridis"}),
        [_axis("method", "method", "nominal"), _axis("round", "round"), _axis("lora_rank", "lora_rank")],
    )
    note = "Number of registered clients by lora_rank, as they are pruned (longest run of each method)."
    if equal:
        note += " Not shown, one lora_rank for all: " + ", ".join(equal) + "."
    return Figure(
        "lora-ranks",
        "Distribution of lora_ranks over time",
        note,
        _panels(values, cell, methods),
        wide=len(methods) > 1,
    )


def weight_by_rank(methods: list[Method]) -> Figure | None:
    """Aggregation weight by lora_rank, one panel per method that mixes lora_ranks, all on the same axes."""
    values = rows.weights(methods)
    mixed = [m for m in methods if len({row["lora_rank"] for row in values if row["method"] == m.label}) > 1]
    shown = mixed[:MOST_PANELS] or methods[:1]
    values = [row for row in values if row["method"] in {method.label for method in shown}]
    if not values:
        return None
    ranks = [row["lora_rank"] for row in values]
    x_scale = {"domain": [min(ranks), max(ranks)], "padding": 6}
    y_scale = {"domain": [0, max(max(row["high"] for row in values), 1.0)], "nice": True}
    x = _axis("lora_rank", "lora_rank sent", axis={"tickMinStep": 1}, scale=x_scale)
    tooltip = [
        _axis("method", "method", "nominal"), _axis("lora_rank", "lora_rank"), _axis("mean", "mean share"),
        _axis("low", "quartile"), _axis("high", "third quartile"), _axis("participations", "participations"),
    ]  # fmt: skip
    title = "weight x clients"
    colour = {"value": COLOURS[0]}
    cell = {
        "layer": [
            {"mark": {"type": "rule", "tooltip": False, "opacity": 0.5},
             "encoding": {"x": x, "y": _axis("low", title, scale=y_scale), "y2": {"field": "high"}, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
             "encoding": {"x": x, "y": _axis("mean", title), "color": colour, "tooltip": tooltip}},
            {"data": {"values": [{"one": 1}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#888888"},
             "encoding": {"y": _axis("one", title)}},
        ]
    }  # fmt: skip
    note = "Mean and quartiles over all participations; 1 is a fair share." + _left_out(methods, shown)
    return Figure("weights", "Aggregation weight by lora_rank", note, _panels(values, cell, shown), wide=len(shown) > 1)


def client_fairness(methods: list[Method]) -> Figure | None:
    """Each client's loss before and after."""
    values = rows.fairness(methods)
    if not values:
        return None
    tooltip = [
        _axis("client", "client", "nominal"), _axis("lora_rank", "lora_rank"), _axis("before", "loss before"),
        _axis("after", "loss after"), _axis("change", "change"),
    ]  # fmt: skip
    low = min(min(row["before"], row["after"]) for row in values)
    high = max(max(row["before"], row["after"]) for row in values)
    scale = {"domain": [low, high], "nice": True, "zero": False}
    spec = _spec(
        values,
        layer=[
            {"data": {"values": [{"x": low, "y": low}, {"x": high, "y": high}]},
             "mark": {"type": "line", "strokeDash": [4, 4], "color": "#888888", "strokeWidth": 1},
             "encoding": {"x": _axis("x", "loss before training"), "y": _axis("y", "loss after training")}},
            {"mark": {"type": "circle", "size": 26},
             "encoding": {"x": _axis("before", "loss before training", scale=scale),
                          "y": _axis("after", "loss after training", scale=scale),
                          "color": _by_method(methods)["color"], "tooltip": tooltip,
                          "opacity": _faded(methods, 0.7)},
             **_pick(methods)},
        ],
    )  # fmt: skip
    note = "One point per client, on its own held-out data; below the line: better than before. " + _worst(values)
    return Figure("fairness", "Clients before and after", note, [spec])


def _worst(values: list[dict]) -> str:
    parts = []
    for name in dict.fromkeys(row["method"] for row in values):
        losses = sorted((row["after"] for row in values if row["method"] == name), reverse=True)
        tail = losses[: max(1, len(losses) // 10)]
        worse = sum(row["change"] > 0 for row in values if row["method"] == name)
        parts.append(
            f"{name}: mean {sum(losses) / len(losses):.3f}, worst tenth {sum(tail) / len(tail):.3f}, "
            f"{worse} of {len(losses)} clients worse than before"
        )
    return "; ".join(parts) + "."


def budget_of_time(methods: list[Method]) -> Figure | None:
    """Where the time of a round goes."""
    values = rows.time_budget(methods)
    if not values:
        return None
    order = [part for _, part in rows.TIME_PARTS] + ["other"]
    spec = _spec(
        values,
        mark={"type": "bar"},
        encoding={
            "y": _axis("method", None, "nominal", sort=None, axis={"labelLimit": 150}),
            "x": _axis("seconds", "seconds of a round (mean)", stack="zero"),
            "color": _axis("part", "part", "nominal", scale={"domain": order, "range": _cycled(COLOURS, len(order))},
                           sort=order),
            "order": {"field": "seconds", "sort": "descending"},
            "tooltip": [_axis("method", "method", "nominal"), _axis("part", "part", "nominal"),
                        _axis("seconds", "seconds")],
        },
    )  # fmt: skip
    spec["height"] = 34 * len({row["method"] for row in values}) + 10
    return Figure("time", "Time of a round", "Wall time, mean over rounds and seeds.", [spec])


def collapse_by_layer(methods: list[Method]) -> Figure | None:
    """Share of energy in the leading directions, by adapted matrix."""
    values = rows.layer_share(methods[:MOST_PANELS])
    if not values:
        return None
    cell = _heat(
        _axis("matrix", None, "nominal", sort=None, axis={"labelOverlap": "greedy", "labelLimit": 120}),
        _axis("share", "share", scale={"scheme": "viridis", "domain": [0, 1]}),
        [_axis("matrix", "matrix", "nominal"), _axis("round", "round")],
    )
    note = "Share of each product's squared singular values in the leading rank_min: near 1, the high slots are unused."
    return Figure(
        "layers", "Rank collapse by adapted matrix", note, _panels(values, cell, methods), wide=len(methods) > 1
    )
