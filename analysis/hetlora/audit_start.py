"""The adapter that a run started from (`model.adapter`), read independently of the program, for the audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from hetlora.audit_config import AuditError


def peft_slots(folder: Path, layout: list[tuple[str, int, int]], scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(A [r, d_in], Bt [r, d_out]) of every matrix of a PEFT folder in float64, B brought to the run's `scale`.

    Raises:
        AuditError: If the folder or one of its tensors is not there.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        r = int(config["r"])
        own = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
        factor = 1.0 if abs(own / scale - 1) < 1e-14 else own / scale
        slots = []
        for name, _, _ in layout:
            a, b = (tensors[f"base_model.model.{name}.lora_{which}.weight"].astype(np.float64) for which in "AB")
            slots.append((a, b.T * factor))
        return slots
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise AuditError(f"the adapter that the run started from cannot be read ({error}) - {folder}") from error
