"""The page itself: what was run, the figures, tables and provenance in one HTML file that needs nothing else."""

import json
import math
from datetime import datetime, timezone
from importlib import resources

from hetlora import __version__
from hetlora.errors import need
from hetlora.headline import Headline, headline
from hetlora.report.figures import Figure
from hetlora.report.replies import conversations
from hetlora.report.rows import Method, values
from hetlora.report.theme import DARK, LIGHT
from hetlora.run_record import RunRecord
from hetlora.runs_settings import common_settings, swept_settings

MOST_RUNS_LISTED = 200
HIGHLIGHTS = (
    "strategy.preset", "model.path", "data.path", "lora.targets", "lora.rank_distribution", "lora.rank_min",
    "lora.rank_max", "lora.scale", "experiment.rounds", "experiment.clients_per_round", "local.steps",
    "local.batch_size", "local.optimizer", "local.learning_rate", "evaluation.part", "experiment.seed",
)  # fmt: skip
STATES_IN_WORDS = {
    "done": "done", "running": "running", "stopped": "stopped (can go on)", "failed": "failed",
    "damaged": "damaged", "waiting": "not started", "died": "died (can go on)",
}  # fmt: skip


def script_text(value: object) -> str:
    """JSON that may stand inside <script>: no closing tag can appear in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def chart_library() -> str:
    """Vega, Vega-Lite and vega-embed as one script (window.vegaEmbed), from the package vl-convert."""
    bundle = need("vl_convert", "report").javascript_bundle()
    return bundle.replace("</script", "<\\/script")


def render(methods: list[Method], figures: list[Figure], title: str) -> str:
    """The page as text."""
    jinja2 = need("jinja2", "report")
    template = resources.files("hetlora.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    records = [record for method in methods for record in method.records]
    judged = headline(records)
    replies = conversations(methods)  # before the warnings: it may add problems
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        summary=summary(methods),
        warnings=warnings(methods),
        highlights=highlights(records),
        swept=[{"key": key, "values": _distinct(column)} for key, column in swept_of(records).items()],
        headline=judged.name,
        runs=[run_line(method, record, judged) for method in methods for record in method.records][:MOST_RUNS_LISTED],
        runs_left_out=max(0, len(records) - MOST_RUNS_LISTED),
        figures=figures,
        conversations=replies,
        provenance=provenance(records),
        specs=script_text({figure.key: figure.specs for figure in figures}),
        light=script_text(LIGHT),
        dark=script_text(DARK),
        library=chart_library(),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def swept_of(records: list[RunRecord]) -> dict[str, list]:
    """Keys that differ between the runs."""
    return swept_settings(records) if len(records) > 1 else {}


def _distinct(column: list) -> str:
    seen = list(dict.fromkeys("-" if value in (None, "") else str(value) for value in column))
    return ", ".join(seen[:12]) + (f", ... ({len(seen)} values)" if len(seen) > 12 else "")


def summary(methods: list[Method]) -> str:
    """One sentence on what the page shows."""
    records = [record for method in methods for record in method.records]
    rounds = {record.n_rounds for record in records}
    span = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else str(max(rounds, default=0))
    kinds = f"{len(methods)} method{'' if len(methods) == 1 else 's'}"
    runs = f"{len(records)} runs of {kinds}" if len(records) > 1 else "One run"
    return f"{runs}, {span} rounds."


def warnings(methods: list[Method]) -> list[str]:
    """What a reader must know before reading a chart, most serious first."""
    found = []
    for method in methods:
        for record in method.records:
            if record.state != "done":
                found.append(f"{record.name} ({method.label}) is {STATES_IN_WORDS.get(record.state, record.state)}: "
                             f"{record.n_rounds} rounds are shown.")  # fmt: skip
            found += [f"{record.name}: {problem}" for problem in record.problems]
            judged = headline([record])
            if record.n_rounds and not any(math.isfinite(v) for v in values(record, judged.column)):
                found.append(f"{record.name}: {judged.name} was never measured (all NaN).")
        found += slots_warning(method)
    if len({record.n_rounds for method in methods for record in method.records if record.state == "done"}) > 1:
        found.append("The runs have different numbers of rounds: compare them at the same round only.")
    if len(found) > 30:
        found = found[:30] + [f"... and {len(found) - 30} more."]
    return found


def slots_warning(method: Method) -> list[str]:
    """Dead slots of the method's longest run, in a sentence."""
    alive = [v for v in values(method.first, "slots_alive") if math.isfinite(v)]
    if len(alive) < 2 or alive[-1] >= alive[0]:
        return []
    return [
        f"{method.label}: {int(alive[0] - alive[-1])} of {int(alive[0])} slots died (they are zero in both factors and "
        "can never learn again); the loss does not show it."
    ]


def highlights(records: list[RunRecord]) -> list[dict]:
    """The settings that most readers look for, where all runs share them."""
    shared = common_settings(records) if len(records) > 1 else records[0].settings
    return [{"key": key, "value": str(shared[key])} for key in HIGHLIGHTS if shared.get(key) not in (None, "")]


def run_line(method: Method, record: RunRecord, judged: Headline) -> dict[str, str]:
    """One line of the table of runs."""
    measured = [v for v in values(record, judged.column) if math.isfinite(v)]
    sent = sum(v for v in values(record, "bytes_up_true") if math.isfinite(v))
    seconds = sum(v for v in values(record, "t_round_s") if math.isfinite(v))
    alive = [v for v in values(record, "slots_alive") if math.isfinite(v)]
    return {
        "method": method.label,
        "run": record.path.resolve().name,
        "seed": str(record.setting("experiment.seed", "-")),
        "state": STATES_IN_WORDS.get(record.state, record.state),
        "rounds": str(record.n_rounds),
        "before": f"{measured[0]:.3f}" if measured else "-",
        "after": f"{measured[-1]:.3f}" if len(measured) > 1 else "-",
        "megabytes": f"{sent / 1e6:.2f}",
        "slots": f"{int(alive[-1])}/{record.rank_max}" if alive and record.rank_max else "-",
        "seconds": f"{seconds:.1f}",
    }


def provenance(records: list[RunRecord]) -> list[dict]:
    """Facts of /provenance: of one run all, of several those that they share."""
    texts = [{key: str(value) for key, value in record.provenance.items() if "config" not in key} for record in records]
    texts = [one for one in texts if one] or [{}]
    shared = {key: value for key, value in texts[0].items() if all(one.get(key) == value for one in texts)}
    left_out = {key for one in texts for key in one} - set(shared)
    lines = [{"key": key, "value": value} for key, value in sorted(shared.items()) if value != ""]
    if left_out:
        lines.append({"key": "differ between the runs", "value": ", ".join(sorted(left_out))})
    return lines
