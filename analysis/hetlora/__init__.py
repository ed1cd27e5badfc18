"""hetlora: the Python side of the hetlora federated-LoRA runner (data, checkpoints, audit, tables, analysis of runs).

In Python: `hetlora.open_runs(paths)` (xarray), `hetlora.participation(paths)` (pandas), `hetlora.read_run(folder)`.
"""

__version__ = "0.1.0"

_EXPORTS = {
    "open_runs": "hetlora.runs_dataset",
    "participation": "hetlora.runs_participation",
    "read_run": "hetlora.run_record",
    "find_runs": "hetlora.run_folders",
}
__all__ = ["open_runs", "participation", "read_run", "find_runs"]


def __getattr__(name: str):
    """Imports what is asked for only then: `hetlora --help` needs none of it."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hetlora' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value
