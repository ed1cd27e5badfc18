"""FedProx as a penalty: mu/2 times the squared distance to the adapter received (as local_extra = proximal).

hetlora run --config FILE strategy.preset=zeropad strategy.plugin=examples/python-plugins/proximal_penalty.py
"""

MU = 0.01


def penalty(context):
    distance = 0.0
    for now, received in zip(context.factors, context.received, strict=True):
        for x, start in zip(now, received, strict=True):
            distance = distance + (x - start).square().sum(dim=(1, 2))
    return MU / 2 * distance
