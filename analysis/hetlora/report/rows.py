"""From run records to the rows that charts draw: plain dicts with short numbers, one function per figure."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from hetlora.compare_statistics import mean_interval
from hetlora.run_record import RunRecord
from hetlora.runs_settings import SEEDS, swept_settings
from hetlora.table import rank_law

LEVEL = 0.95
LONGEST_LABEL = 28
SECTIONS_OF_THE_MACHINE = ("compute", "comm", "checkpoint", "output", "log")
# What is measured beside the loss or how often: no other training.
MEASURED_BESIDE = ("test", "clients", "samples", "sample_tokens", "every", "metrics", "divergence_factor")
TIME_PARTS = (
    ("t_train_s", "local training"), ("t_comm_s", "communication"), ("t_aggregate_s", "aggregation"),
    ("t_eval_s", "evaluation"), ("t_io_s", "writing"),
)  # fmt: skip


@dataclass
class Method:
    """Runs that differ in nothing but their seeds."""

    label: str
    records: list[RunRecord] = field(default_factory=list)

    @property
    def first(self) -> RunRecord:
        """The run that stands for the method where only one can be drawn: the longest, then the first."""
        return max(self.records, key=lambda record: record.committed_rounds)


def methods_of(records: list[RunRecord]) -> list[Method]:
    """The runs grouped by every swept key but the seeds; labels name those keys' values."""
    swept = swept_settings(records) if len(records) > 1 else {}
    keys = [key for key in swept if not _says_nothing_of_the_method(key)]
    methods: dict[tuple, Method] = {}
    for i, record in enumerate(records):
        choice = tuple(str(swept[key][i]) for key in keys)
        methods.setdefault(choice, Method(_label({key: swept[key][i] for key in keys}, record))).records.append(record)
    found = list(methods.values())
    names = [method.records[0].name for method in found]
    own_names = len(set(names)) == len(names) and all(len(method.records) == 1 for method in found)
    if own_names and len(found) > 1 and max(len(method.label) for method in found) > LONGEST_LABEL:
        for method in found:
            method.label = method.records[0].name  # runs named one by one: their names are shorter than what they vary
    for method in found:
        twins = [other for other in found if other.label == method.label]
        for number, twin in enumerate(twins[1:], start=2):
            twin.label = f"{twin.label} ({number})"
    return found


def _says_nothing_of_the_method(key: str) -> bool:
    section, _, name = key.partition(".")
    if section in SECTIONS_OF_THE_MACHINE:
        return True
    return name in {"experiment": (*SEEDS, "seed", "tags"), "evaluation": MEASURED_BESIDE}.get(section, ())


def _label(swept: dict[str, object], record: RunRecord) -> str:
    """Method first, then the law of the ranks in a word, then what else was varied."""
    parts = []
    if "strategy.preset" in swept or not swept:
        parts.append(str(record.setting("strategy.preset") or record.name))
    if any(key.startswith("lora.rank") for key in swept):
        parts.append(rank_law(record.config.get("lora", {})))
    for key, value in swept.items():
        if key != "strategy.preset" and not key.startswith("lora.rank") and value not in (None, "", "preset"):
            parts.append(f"{key.split('.')[-1]} {value}")
    return ", ".join(parts) or record.name


def short(value: float) -> float | None:
    """Five significant digits; None (a gap in a chart) for what is not finite."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


def values(record: RunRecord, name: str) -> np.ndarray:
    """A column of /rounds as float64 [round]; NaN where the log has none."""
    column = record.rounds.get(name)
    if column is None:
        return np.full(len(record.rounds.get("round", ())), np.nan)
    return np.asarray(column, dtype=np.float64)


def curve(methods: list[Method], name: str) -> list[dict]:
    """One row per method and round that some seed measured: mean over seeds, and its 95 % interval from two on."""
    rows = []
    for method in methods:
        by_round = defaultdict(list)
        for record in method.records:
            for when, value in zip(record.rounds.get("round", ()), values(record, name), strict=True):
                if math.isfinite(value):
                    by_round[int(when)].append(value)
        for when, seeds in sorted(by_round.items()):
            estimate = mean_interval(np.asarray(seeds), LEVEL) if len(seeds) > 1 else None
            rows.append({
                "method": method.label, "round": when, "mean": short(np.mean(seeds)), "seeds": len(seeds),
                "low": short(estimate.low) if estimate else None, "high": short(estimate.high) if estimate else None,
            })  # fmt: skip
    return rows


def against_bytes(methods: list[Method], name: str) -> list[dict]:
    """Metric against true bytes sent up so far, in MB: means over seeds, by round."""
    rows = []
    for method in methods:
        cells = defaultdict(list)
        for record in method.records:
            sent = np.cumsum(np.nan_to_num(values(record, "bytes_up_true"))) / 1e6
            for when, megabytes, value in zip(record.rounds.get("round", ()), sent, values(record, name), strict=True):
                if math.isfinite(value):
                    cells[int(when)].append((megabytes, value))
        for when, pairs in sorted(cells.items()):
            megabytes, value = np.mean(pairs, axis=0)
            rows.append({"method": method.label, "round": when, "megabytes": short(megabytes), "mean": short(value)})
    return rows


def lora_ranks(methods: list[Method]) -> list[dict]:
    """How many clients hold each lora_rank after each round, in the longest run of each method."""
    rows = []
    for method in methods:
        record = method.first
        ranks = np.asarray(record.clients.get("initial_lora_rank", ()), dtype=np.int64).copy()
        if not len(ranks) or not len(record.rounds.get("round", ())):
            continue
        events = record.participation
        order = np.asarray(events.get("round", ()), dtype=np.int64)
        for when in (int(one) for one in record.rounds["round"]):
            here = order == when
            if here.any():
                clients = np.asarray(events["client"])[here]
                ranks[clients] = np.minimum(ranks[clients], np.asarray(events["lora_rank_after"])[here])
            levels, counts = np.unique(ranks, return_counts=True)
            rows += [
                {"method": method.label, "round": when, "lora_rank": int(level), "clients": int(count)}
                for level, count in zip(levels, counts, strict=True)
            ]
    return rows


def slot_energy(methods: list[Method]) -> list[dict]:
    """Share of each slot in the global product's squared norm, by round, in the longest run of each method."""
    rows = []
    for method in methods:
        slots = method.first.slots
        energy = np.asarray(slots.get("energy", np.zeros((0, 0))))
        for when, line in zip(slots.get("round", ()), energy, strict=False):
            rows += [
                {"method": method.label, "round": int(when), "slot": i, "energy": short(value)}
                for i, value in enumerate(line)
                if int(when) > 0
            ]
    return rows


def weights(methods: list[Method]) -> list[dict]:
    """Aggregation weight times cohort size (1 = a fair share) by lora_rank: mean and quartiles over all."""
    rows = []
    for method in methods:
        cells = defaultdict(list)
        for record in method.records:
            events = record.participation
            when = np.asarray(events.get("round", ()), dtype=np.int64)
            if not len(when):
                continue
            kept = np.asarray(events["dropped"]) == 0
            size = np.bincount(when[kept], minlength=int(when.max()) + 1)
            for rank, weight, r in zip(
                np.asarray(events["lora_rank_after"])[kept], np.asarray(events["weight"])[kept], when[kept], strict=True
            ):
                cells[int(rank)].append(float(weight) * size[r])
        for rank, shares in sorted(cells.items()):
            low, high = np.quantile(shares, [0.25, 0.75])
            rows.append({
                "method": method.label, "lora_rank": rank, "mean": short(np.mean(shares)), "low": short(low),
                "high": short(high), "participations": len(shares),
            })  # fmt: skip
    return rows


def fairness(methods: list[Method]) -> list[dict]:
    """Loss of every client on its own held-out data before and after, of the methods' longest runs that measured it."""
    rows = []
    for method in methods:
        clients = method.first.clients
        before = np.asarray(clients.get("eval_loss_base", ()), dtype=np.float64)
        after = np.asarray(clients.get("eval_loss_final", ()), dtype=np.float64)
        if len(before) != len(after):
            continue
        known = np.isfinite(before) & np.isfinite(after)
        ranks = np.asarray(clients.get("initial_lora_rank", np.zeros(len(before))))
        names = clients.get("name", np.arange(len(before)).astype(str))
        for k in np.flatnonzero(known):
            rows.append({
                "method": method.label, "client": str(names[k]), "before": short(before[k]), "after": short(after[k]),
                "change": short(after[k] - before[k]), "lora_rank": int(ranks[k]),
            })  # fmt: skip
    return rows


def time_budget(methods: list[Method]) -> list[dict]:
    """Mean seconds of a round by what they were spent on; the rest of the wall time is 'other'."""
    rows = []
    for method in methods:
        sums, wall = defaultdict(list), []
        for record in method.records:
            trained = np.asarray(record.rounds.get("round", ())) > 0
            wall += list(values(record, "t_round_s")[trained])
            for column, part in TIME_PARTS:
                sums[part] += list(np.nan_to_num(values(record, column)[trained]))
        if not wall:
            continue
        parts = {part: float(np.mean(seconds)) for part, seconds in sums.items()}
        parts["other"] = max(0.0, float(np.nanmean(wall)) - sum(parts.values()))
        rows += [{"method": method.label, "part": part, "seconds": short(s)} for part, s in parts.items()]
    return rows


def layer_share(methods: list[Method]) -> list[dict]:
    """Share of each adapted matrix' energy in its leading rank_min directions, where /layers was logged."""
    rows = []
    for method in methods:
        layers = method.first.layers or {}
        share = layers.get("leading_energy")
        if share is None:
            continue
        names = layers.get("name", np.arange(np.asarray(share).shape[-1]).astype(str))
        for when, line in zip(layers.get("round", ()), np.asarray(share), strict=False):
            rows += [
                {"method": method.label, "round": int(when), "matrix": str(names[m]), "share": short(value)}
                for m, value in enumerate(line)
            ]
    return rows


def label_counts(methods: list[Method], most_clients: int) -> list[dict]:
    """Training sequences by class and client, of the methods' longest runs; clients by size, evenly picked if many.

    One row per class and client shown that has any, with the share of the client's sequences.
    """
    rows = []
    for method in methods:
        counts = np.asarray(method.first.labels.get("n_train_sequences", np.zeros((0, 0))))
        if counts.ndim != 2 or not counts.any():
            continue
        names = [str(name) for name in method.first.labels.get("name", np.arange(counts.shape[1]))]
        total = counts.sum(axis=1)
        order = np.argsort(-total, kind="stable")
        order = order[total[order] > 0]
        if len(order) > most_clients:
            order = order[np.linspace(0, len(order) - 1, most_clients).astype(int)]
        for place, client in enumerate(order):
            rows += [
                {"method": method.label, "place": place, "client": int(client), "label": names[c],
                 "sequences": int(n), "share": short(n / total[client])}
                for c, n in enumerate(counts[client]) if n
            ]  # fmt: skip
    return rows
