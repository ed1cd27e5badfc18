"""Settings of a traced run, read from RUN_DIR/config.json, with refusals for what cannot be replayed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetlora.errors import UserError


class AuditError(UserError):
    """The audit cannot be made: exit code 2 = a setting that cannot be replayed, 3 = missing or broken input."""

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code


#: The rows of the preset table (methods): what the policy keys mean when they are left at "preset".
PRESETS = {
    "hetlora": ("all", "sparsity", "tail_prune", "parameters"),
    "hetlora-agg": ("all", "sparsity", "none", "parameters"),
    "zeropad": ("all", "samples", "none", "parameters"),
    "fedavg": ("all", "samples", "none", "parameters"),
}
ALIASES = {"homlora": "fedavg", "fedit": "fedavg"}
POLICIES = ("slot_norm", "client_weight", "local_extra", "aggregate")
REPLAYABLE = {
    "strategy.slot_norm": ("all", "contributors"),
    "strategy.client_weight": ("uniform", "samples", "sparsity"),
    "strategy.local_extra": ("none", "tail_prune"),
    "strategy.aggregate": ("parameters", "deltas"),
    "strategy.prune_reference": ("received", "initial"),
    "strategy.prune_rounding": ("floor", "nearest", "ceil"),
    "strategy.weight_scope": ("client", "matrix"),
    "strategy.weight_norm": ("root_sum_squares", "sum"),
    "strategy.keep_uncovered": ("no", "last"),
    "lora.scale_rule": ("constant", "alpha_over_rank", "rslora"),
    "local.optimizer": ("sgd", "adamw"),
    "local.lr_schedule": ("constant", "linear", "cosine"),
    "model.precision": ("fp32", "fp64"),
}
LONG_NAMES = {"float32": "fp32", "float64": "fp64"}


@dataclass(frozen=True)
class Settings:
    """Typed access to the resolved config; `values["section.key"]`, with the documented defaults for absent keys."""

    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of "section.key", or `default` when the key is absent."""
        return self.values.get(key, default)

    @property
    def precision(self) -> str:
        """fp32 or fp64."""
        name = str(self.get("model.precision", "fp32"))
        return LONG_NAMES.get(name, name)

    def policy(self, key: str) -> str:
        """A policy key of [strategy]; "preset" is looked up in the preset's row."""
        value = str(self.get(f"strategy.{key}", "preset"))
        if value != "preset":
            return value
        preset = str(self.get("strategy.preset", "hetlora"))
        row = PRESETS.get(ALIASES.get(preset, preset))
        if row is None:
            raise AuditError(
                f"preset {preset!r} cannot be replayed - strategy.preset - audit knows {', '.join(PRESETS)}", 2
            )
        return row[POLICIES.index(key)]

    def seed(self, purpose: str) -> int:
        """seed_<purpose>, which defaults to experiment.seed."""
        value = self.get(f"experiment.seed_{purpose}")
        if value is None or value == "" or (isinstance(value, int) and value < 0):
            value = self.get("experiment.seed", 0)
        return int(value)

    def scale(self, lora_rank: int) -> float:
        """The factor s in W0 + s B A at this lora_rank."""
        rule = self.get("lora.scale_rule", "constant")
        if rule == "constant":
            return float(self.get("lora.scale", 2.0))
        alpha = float(self.get("lora.lora_alpha", 16))
        return alpha / (lora_rank if rule == "alpha_over_rank" else math.sqrt(lora_rank))

    def learning_rate(self, round_number: int) -> float:
        """Learning rate of round t = 1..rounds: warm-up t / warmup, then from 1 to lr_final_fraction at t = rounds."""
        base = float(self.get("local.learning_rate", 2e-3))
        warmup, rounds = int(self.get("local.lr_warmup_rounds", 0)), int(self.get("experiment.rounds", 10))
        schedule, last = self.get("local.lr_schedule", "constant"), float(self.get("local.lr_final_fraction", 0.1))
        if round_number <= warmup:
            return base * round_number / warmup
        if schedule == "constant" or rounds <= warmup:
            return base
        progress = min(1.0, (round_number - warmup) / (rounds - warmup))
        if schedule == "linear":
            return base * (1.0 + (last - 1.0) * progress)
        return base * (last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def tail_start(self, lora_rank: int) -> int:
        """g, the first slot of the tail that may be pruned; g >= lora_rank means that there is no tail.

        g = max(rank_min, floor(gamma r)), with a guard of 1e-9 because 0.7 * 90 is 62.99... in binary.
        """
        product = float(self.get("strategy.prune_gamma", 0.99)) * lora_rank
        rounding = self.get("strategy.prune_rounding", "floor")
        if rounding == "floor":
            kept = math.floor(product + 1e-9)
        elif rounding == "ceil":
            kept = math.ceil(product - 1e-9)
        else:
            kept = math.floor(product + 0.5 + 1e-9)
        return max(int(self.get("lora.rank_min", 2)), kept)


def read_settings(run_dir: Path) -> Settings:
    """Reads RUN_DIR/config.json and refuses what the audit cannot replay (AuditError)."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise AuditError(f"no config.json - {run_dir} - give the folder of a hetlora run (results/<name>)")
    try:
        nested = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise AuditError(f"config.json is not valid JSON: {error} - {path} - copy the run folder again") from error
    values = {
        f"{section}.{key}": ",".join(map(str, value)) if isinstance(value, list) else value
        for section, keys in nested.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    settings = Settings(values)
    for key, known in REPLAYABLE.items():
        section, name = key.split(".")
        if section == "strategy" and name in POLICIES:
            value = settings.policy(name)
        elif key == "model.precision":
            value = settings.precision
        else:
            value = str(settings.get(key, known[0]))
        if value not in known:
            raise AuditError(
                f"{key} = {value} cannot be replayed - {path} - audit a run with {key} one of: {', '.join(known)}", 2
            )
    if settings.get("strategy.plugin", ""):
        raise AuditError(
            f"strategy.plugin = {settings.get('strategy.plugin')} cannot be replayed: the audit has the built-in "
            f"policies only - {path} - audit a run without a plugin", 2,
        )  # fmt: skip
    if float(settings.get("lora.dropout", 0.0)) > 0:
        raise AuditError(
            f"lora.dropout = {settings.get('lora.dropout')} cannot be replayed (its masks come from the program's own "
            f"random numbers) - {path} - audit a run with lora.dropout = 0", 2,
        )  # fmt: skip
    return settings
