"""What `hetlora compare` refuses to put side by side: other data, base, evaluation set or settings, unequal grids."""

from hetlora.compare_runs import PART, SEED_KEYS, Chosen, MethodRun, Question
from hetlora.errors import UsageError
from hetlora.runs_settings import swept_settings

# Settings that change no result (docs/configuration.md), or only what else is written beside the metric.
HARMLESS_SECTIONS = ("compute", "checkpoint", "output", "log")
HARMLESS_KEYS = ("experiment.name", "experiment.tags", "evaluation.samples", "evaluation.sample_tokens",
                 "evaluation.clients", "evaluation.metrics", "evaluation.divergence_factor")  # fmt: skip
# Told by content (SHA-256), not by where the files lie.
PATHS = {"model.path": "base_sha256", "data.path": "data_sha256"}
# They decide what is measured: never comparable, not even when --by names them.
EVALUATION_SET = ("evaluation.sequences", "data.sequence_length", "data.overlap")
MOST_NAMES = 3


def check_comparable(chosen: Chosen, question: Question) -> list[str]:
    """Raises one UsageError that names every reason why the runs cannot be compared; returns notes."""
    runs, notes = chosen.runs, []
    reasons = _other_content(runs, notes) + _other_settings(runs, question, notes) or _twice(runs)
    if question.tune:
        reasons += _unequal_grids(chosen.tried)
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise UsageError(f"these runs cannot be compared fairly:{listed}")
    return notes


def content_hash(run: MethodRun, name: str) -> str:
    """base_sha256 or data_sha256 of a run, from its log or the head of its config.ini; "" if unknown."""
    found = str(run.record.provenance.get(name, ""))
    if found:
        return found
    mark = "# " + name.replace("_", " ") + " "
    try:
        with open(run.record.path / "config.ini", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(mark):
                    return line[len(mark) :].strip()
                if not line.startswith("#"):
                    break
    except OSError:
        pass
    return ""


def _other_content(runs: list[MethodRun], notes: list[str]) -> list[str]:
    reasons = []
    for key, name in PATHS.items():
        what = "base model" if key == "model.path" else "data"
        hashes = {run.name: content_hash(run, name) for run in runs}
        unknown = [one for one, found in hashes.items() if not found]
        if unknown:
            notes.append(f"the {what} of {_names(unknown)} is not known by content ({name} is missing)")
        groups: dict[str, list[str]] = {}
        for one, found in hashes.items():
            if found:
                groups.setdefault(found[:8], []).append(one)
        if len(groups) > 1:
            listed = "; ".join(f"{found} in {_names(names)}" for found, names in groups.items())
            reasons.append(f"other {what} ({name}): {listed}")
    return reasons


def _other_settings(runs: list[MethodRun], question: Question, notes: list[str]) -> list[str]:
    explained = {*question.by, *question.tune, *SEED_KEYS, PART, *HARMLESS_KEYS, *PATHS} - set(EVALUATION_SET)
    if question.at == "last":
        explained.add("evaluation.every")
    if all(run.record.setting("local.lr_schedule", "constant") == "constant" for run in runs) and not any(
        run.record.setting("local.lr_warmup_rounds", 0) for run in runs
    ):
        explained.add("experiment.rounds")  # compared at a round that all have
    reasons = []
    for key, values in swept_settings([run.record for run in runs]).items():
        if key in explained:
            continue
        if key == "evaluation.test" and set(values) <= {None, "none"}:
            continue  # a program older than this key measured no test part either
        groups: dict[str, list[str]] = {}
        for run, value in zip(runs, values, strict=True):
            groups.setdefault(str(value), []).append(run.name)
        listed = "; ".join(f"{value} in {_names(names)}" for value, names in groups.items())
        if key.split(".")[0] in HARMLESS_SECTIONS:
            if key in ("compute.threads", "compute.device"):
                notes.append(f"{key} differs, so seconds do not compare: {listed}")
        elif key in EVALUATION_SET:
            reasons.append(f"{key} differs, so they are measured on other text: {listed}; choose one by --where")
        else:
            reasons.append(f"{key} differs: {listed}; name it in --by, choose one value by --where")
    return reasons


def _twice(runs: list[MethodRun]) -> list[str]:
    seen: dict[tuple, list[str]] = {}
    for run in runs:
        seen.setdefault((run.method, run.tuned, run.seed, run.part), []).append(run.name)
    return [
        f"several runs of {method} with seed {seed}: {_names(names)}; name fewer runs"
        for (method, _, seed, _), names in seen.items()
        if len(names) > 1
    ]


def _unequal_grids(grids: dict[str, set[tuple]]) -> list[str]:
    if len({frozenset(grid) for grid in grids.values()}) < 2:
        return []
    listed = "; ".join(
        f"{method}: {', '.join(map(tuned_text, sorted(grid, key=str)))}" for method, grid in grids.items()
    )
    return [f"unequal tuning grids, so that one method had more tries: {listed}"]


def tuned_text(values: tuple) -> str:
    """The tuned values as text."""
    return " ".join(map(str, values))


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
