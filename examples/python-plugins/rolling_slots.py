"""Rolling slots: a client's window of slots moves on by one in every round, so that all slots train, also where every
client is small (the idea of FedRolex, for LoRA slots).

    hetlora run --config FILE strategy.preset=zeropad strategy.plugin=examples/python-plugins/rolling_slots.py
"""

import torch


def select(context):
    rank_max = context.run.rank_max
    place = (torch.arange(rank_max) - context.round + 1) % rank_max
    return place < context.lora_rank.unsqueeze(1)
