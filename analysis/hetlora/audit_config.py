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


#: Runs of before config.json had a section resolved_strategy: what policy keys at "preset" mean in them.
PRESETS = {
    "hetlora": ("all", "sparsity", "tail_prune", "parameters"),
    "hetlora-agg": ("all", "sparsity", "none", "parameters"),
    "zeropad": ("all", "samples", "none", "parameters"),
    "fedavg": ("all", "samples", "none", "parameters"),
}
ALIASES = {"homlora": "fedavg", "fedit": "fedavg"}
POLICIES = ("slot_norm", "client_weight", "local_extra", "aggregate")
#: Every policy with the values that can be replayed; the first one is that of runs which do not name it.
REPLAYABLE_POLICIES = {
    "slot_select": ("prefix", "random", "importance", "scored"),
    "receive": ("selected", "all"),
    "slot_scale": ("none", "sketch"),
    "trainable": ("both", "b", "alternate", "base"),
    "local_extra": ("none", "tail_prune", "proximal"),
    "shared_factors": ("both", "a"),
    "client_weight": ("uniform", "samples", "sparsity"),
    "merge": ("factors", "product", "stack"),
    "slot_norm": ("all", "contributors", "levels", "replicate"),
    "aggregate": ("parameters", "deltas"),
    "factor_split": ("left", "sqrt", "right"),
    "base_update": ("none", "merge", "truncated", "residual"),
    "server_optimizer": ("none", "momentum", "adam"),
    "rank_schedule": ("none", "annealing"),
    "keep_uncovered": ("no", "last"),
}
REPLAYABLE = {
    "strategy.prune_reference": ("received", "initial"),
    "strategy.prune_rounding": ("floor", "nearest", "ceil"),
    "strategy.weight_scope": ("client", "matrix"),
    "strategy.weight_norm": ("root_sum_squares", "sum"),
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
        """A policy as the run used it: from resolved_strategy, or from [strategy] and the preset of older runs."""
        value = self.get(f"resolved_strategy.{key}")
        if value is not None:
            return str(value)
        value = str(self.get(f"strategy.{key}", "preset"))
        if value != "preset":
            return value
        if key not in POLICIES:
            return REPLAYABLE_POLICIES[key][0]
        preset = str(self.get("strategy.preset", "hetlora"))
        row = PRESETS.get(ALIASES.get(preset, preset))
        if row is None:
            raise AuditError(
                f"config.json does not say what preset {preset!r} does (it has no section resolved_strategy) - "
                "strategy.preset - make the run again with a present hetlora",
                2,
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

    @property
    def labels(self) -> bool:
        """True for a classification run."""
        return self.get("model.task", "causal") == "classification"

    def head_learning_rate(self, round_number: int) -> float:
        """Of a classification head, by the adapters' schedule; 0 in the config: theirs."""
        own = float(self.get("local.head_learning_rate", 0.0) or 0.0)
        return self.learning_rate(round_number, own or None)

    def learning_rate(self, round_number: int, base: float | None = None) -> float:
        """Learning rate of round t = 1..rounds: warm-up t / warmup, then from 1 to lr_final_fraction at t = rounds."""
        base = float(self.get("local.learning_rate", 2e-3)) if base is None else base
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

    def trained_factors(self, round_number: int) -> tuple[bool, bool]:
        """(A trains, B trains) in this round (1-based); alternate: B in odd rounds, A in even ones."""
        trainable = self.policy("trainable")
        if trainable == "alternate":
            return round_number % 2 == 0, round_number % 2 == 1
        return trainable == "both", True

    def sent_factors(self, round_number: int) -> tuple[bool, bool]:
        """(A is averaged, B is averaged) in this round."""
        return (True, False) if self.policy("shared_factors") == "a" else self.trained_factors(round_number)

    def lora_rank_cap(self, round_number: int) -> int:
        """Largest lora_rank of a round: rank_max, or falling geometrically to rank_min after anneal_start."""
        high, low = int(self.get("lora.rank_max", 32)), int(self.get("lora.rank_min", 2))
        if self.policy("rank_schedule") == "none":
            return high
        rounds = int(self.get("experiment.rounds", 10))
        first = math.floor(float(self.get("strategy.anneal_start", 0.2)) * rounds + 1e-9)
        if round_number <= first or rounds <= first:
            return high
        return max(low, math.floor(high * (low / high) ** ((round_number - first) / (rounds - first)) + 0.5))

    def prox_mu(self, round_number: int) -> float:
        """mu of mu/2 ||theta - received||^2; with a rank schedule only while no lora_rank has fallen."""
        if self.policy("local_extra") != "proximal":
            return 0.0
        if self.lora_rank_cap(round_number) < int(self.get("lora.rank_max", 32)):
            return 0.0
        return float(self.get("strategy.prox_mu", 0.01))

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


def _refuse_unknown(settings: Settings, path: Path) -> None:
    """Policies that this audit has not heard of would be left out in silence."""
    known = {f"resolved_strategy.{name}" for name in (*REPLAYABLE_POLICIES, "preset", "rank_levels")}
    for key, value in settings.values.items():
        if key.startswith("resolved_strategy.") and key not in known:
            name = key.replace("resolved_", "")
            raise AuditError(f"{name} = {value} cannot be replayed: this audit does not know the policy - {path} - use "
                             "the hetlora that made the run", 2)  # fmt: skip
    if settings.get("strategy.plugin"):
        raise AuditError(f"strategy.plugin = {settings.get('strategy.plugin')} cannot be replayed: only the "
                         f"program knows it - {path} - audit a run without a plugin", 2)  # fmt: skip


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
    _refuse_unknown(settings, path)
    policies = {f"resolved_strategy.{name}": known for name, known in REPLAYABLE_POLICIES.items()}
    for key, known in (policies | REPLAYABLE).items():
        section, name = key.split(".")
        if section == "resolved_strategy":
            value = settings.policy(name)
        elif key == "model.precision":
            value = settings.precision
        else:
            value = str(settings.get(key, known[0]))
        if value not in known:
            key = key.replace("resolved_", "")
            raise AuditError(
                f"{key} = {value} cannot be replayed - {path} - audit a run with {key} one of: {', '.join(known)}", 2
            )
    if float(settings.get("lora.dropout", 0.0)) > 0 and settings.policy("trainable") != "base":
        raise AuditError(
            f"lora.dropout = {settings.get('lora.dropout')} cannot be replayed (its masks come from the program's own "
            f"random numbers) - {path} - audit a run with lora.dropout = 0", 2,
        )  # fmt: skip
    return settings
