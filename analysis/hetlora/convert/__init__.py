"""Checkpoints of other programs to the folder that hetlora reads: config.json, model.safetensors, tokenizer files."""
