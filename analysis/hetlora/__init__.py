"""hetlora: the Python side of the hetlora federated-LoRA runner (data, checkpoints, audit, tables)."""

__version__ = "0.1.0"
