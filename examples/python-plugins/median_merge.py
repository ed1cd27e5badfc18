"""Each value of the new adapter is the median over the clients that have its slot: a few broken or hostile clients
cannot pull it far. Slots that nobody has keep their values.

    hetlora run --config FILE strategy.preset=zeropad strategy.plugin=examples/python-plugins/median_merge.py
"""

import torch


def median(values, present, previous):
    """The median over dimension 0 of what is present, else the previous value."""
    found = values.masked_fill(~present, float("nan")).nanmedian(dim=0).values
    return torch.where(found.isnan(), previous, found)


def merge(context):
    has_row = context.has_slot.unsqueeze(2)  # [clients, slots, 1]: rows of A are slots
    has_column = context.has_slot.unsqueeze(1)  # columns of B
    return [
        (median(a, has_row, old_a), median(b, has_column, old_b))
        for (a, b), (old_a, old_b) in zip(context.factors, context.global_factors, strict=True)
    ]
