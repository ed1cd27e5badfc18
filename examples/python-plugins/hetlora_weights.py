"""HetLoRA's own weights (sparsity-weighted aggregation) in Python: s_k = sqrt(sum over matrices of ||B A||_F^2).

    hetlora run --config FILE strategy.plugin=examples/python-plugins/hetlora_weights.py

Added up matrix by matrix as the program does it, so that the run is the same to the bit.
"""

import torch


def weight(context):
    total = torch.zeros_like(context.n_samples)
    for of_clients in context.product_norm_squared.unbind(dim=1):
        total = total + of_clients
    return total.sqrt()
