"""Frozen linear layers without bias: y = x W^T, and the gradient of x alone.

Plain: torch's default matmul. Packed: oneDNN on a weight that was reordered once for the forward pass and once,
transposed, for the backward pass; torch has both ops, but nothing in Python's own layers uses them for training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class PlainLinear:
    """x W^T by torch's default matmul."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [N, d_out] of x [N, d_in]."""
        return F.linear(x, self.weight)

    def backward(self, grad_y: torch.Tensor) -> torch.Tensor:
        """The gradient of x."""
        return grad_y @ self.weight

    __call__ = forward  # autograd knows the rest: the weight needs no gradient


class PackedLinear:
    """x W^T by oneDNN; keeps two packed copies and not the weight itself."""

    def __init__(self, weight: torch.Tensor) -> None:
        pack = torch.ops.mkldnn._reorder_linear_weight
        self.packed = pack(weight.contiguous())
        self.packed_transposed = pack(weight.t().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [N, d_out] of x [N, d_in]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def backward(self, grad_y: torch.Tensor) -> torch.Tensor:
        """The gradient of x."""
        return torch.ops.mkldnn._linear_pointwise(grad_y, self.packed_transposed, None, "none", [], "")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """forward, with a gradient for x."""
        return _Packed.apply(x, self)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, linear):
        ctx.linear = linear
        return linear.forward(x)

    @staticmethod
    def backward(ctx, grad_y):
        return ctx.linear.backward(grad_y.contiguous()), None


class HeadLoss(torch.autograd.Function):
    """sum_i w_i nll_i of hidden rows x [N, D], in chunks: no more logits at a time than a chunk has.

    The gradient of x is made in the forward pass, from the logits while they are there.
    Returns (the weighted sum, the plain sum); the second is for the log and has no gradient.
    """

    CHUNK_ELEMENTS = 1 << 22

    @staticmethod
    def forward(ctx, x, head, targets, row_weights, vocab):
        grad = torch.empty_like(x)
        weighted, plain = x.new_zeros((), dtype=torch.float32), x.new_zeros((), dtype=torch.float32)
        size = max(256, HeadLoss.CHUNK_ELEMENTS // vocab)
        for begin in range(0, len(x), size):
            rows = slice(begin, begin + size)
            wanted, weights = targets[rows, None], row_weights[rows, None]
            log_p = torch.log_softmax(head.forward(x[rows]), dim=-1, dtype=torch.float32)
            nll = -log_p.gather(1, wanted)
            weighted += (nll * weights).sum()
            plain += nll.sum()
            grad_logits = log_p.exp_().mul_(weights).scatter_add_(1, wanted, -weights)
            grad[rows] = head.backward(grad_logits.to(x.dtype))
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(plain)
        return weighted, plain

    @staticmethod
    def backward(ctx, grad_weighted, _):
        (grad,) = ctx.saved_tensors
        return grad * grad_weighted.to(grad.dtype), None, None, None, None
