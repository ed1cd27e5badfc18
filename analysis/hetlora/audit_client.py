"""Local training of one client with stock PEFT and torch.optim, one window at a time, and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hetlora.audit_config import Settings
from hetlora.audit_data import Prepared, Window
from hetlora.audit_heads import Head, HeadTraining
from hetlora.audit_model import float64_parts, is_transposed
from hetlora.audit_trace import Layout, join, split


@dataclass
class Participation:
    """What one client did in one round, as replayed."""

    losses: list[float] = field(default_factory=list)  #: mean NLL of each step's batch, nats
    n_loss_tokens: list[int] = field(default_factory=list)
    sent: np.ndarray | None = None  #: canonical form at lora_rank_after; None when not finite
    lora_rank_after: int = 0
    tail_before: float = 0.0  #: sum over matrices of ||Bt tail|| ||A tail|| of the reference factors
    tail_after: float = 0.0  #: the same of the trained factors
    finite: bool = True
    masks: list = field(default_factory=list)  #: rows of A and of Bt of every matrix that trained
    trained: np.ndarray | None = None  #: before pruning, canonical form at lora_rank_before
    head: np.ndarray | None = None  #: the classification head as trained


@dataclass(frozen=True)
class Task:
    """What a client is to train."""

    received: np.ndarray  #: canonical form at `size`
    size: int  #: slots of the adapter
    batches: Sequence[Sequence[Window]]
    learning_rate: float
    reference: np.ndarray | None = None  #: factors whose tail the prune compares with; None: those received
    masks: list[tuple[np.ndarray, np.ndarray]] | None = None  #: rows of A and of Bt that train; None: all
    prox_mu: float = 0.0  #: mu of mu/2 ||theta - received||^2
    head: np.ndarray | None = None  #: the classification head received
    head_learning_rate: float = 0.0


def tail_norm(adapter: np.ndarray, layout: Layout, lora_rank: int, start: int) -> float:
    """Sum over matrices of ||Bt[start:]||_F * ||A[start:]||_F, in fp64."""
    pairs = split(np.asarray(adapter, dtype=np.float64), layout, lora_rank)
    return float(sum(np.linalg.norm(bt[start:]) * np.linalg.norm(a[start:]) for a, bt in pairs))


class ClientTrainer:
    """A base model with one PEFT adapter per lora_rank that has been asked for."""

    def __init__(self, base: torch.nn.Module, layout: Layout, settings: Settings, data: Prepared) -> None:
        self.base, self.layout, self.settings, self.data = base, layout, settings, data
        self.dtype = next(base.parameters()).dtype
        self.model: PeftModel | None = None
        self.tail = settings.policy("local_extra") == "tail_prune"
        self.head = Head(base) if settings.labels else None

    def _adapter(self, lora_rank: int) -> str:
        """Makes the PEFT adapter of this lora_rank the active one; returns its name."""
        name = f"lora_rank_{lora_rank}"
        if self.model is None or name not in self.model.peft_config:
            rule = self.settings.get("lora.scale_rule", "constant")
            if self.settings.policy("slot_scale") == "sketch":  # r of rank_max slots stand for all of them
                rule, rank_max = "constant", int(self.settings.get("lora.rank_max", 32))
                alpha = self.settings.scale(lora_rank) * rank_max
            elif rule == "constant":
                alpha = self.settings.scale(lora_rank) * lora_rank
            else:
                alpha = float(self.settings.get("lora.lora_alpha", 16))
            config = LoraConfig(
                r=lora_rank, lora_alpha=alpha, use_rslora=rule == "rslora", lora_dropout=0.0, bias="none",
                target_modules=[matrix for matrix, _, _ in self.layout],
                fan_in_fan_out=is_transposed(self.base),
            )  # fmt: skip
            if self.model is None:
                self.model = get_peft_model(self.base, config, adapter_name=name, autocast_adapter_dtype=False)
            else:
                self.model.add_adapter(name, config, autocast_adapter_dtype=False)
        self.model.set_adapter(name)
        self.model.eval()  # there is no dropout: only to say so
        return name

    def _parameters(self, name: str) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        out = []
        for matrix, _, _ in self.layout:
            module = self.model.base_model.model.get_submodule(matrix)
            out.append((module.lora_A[name].weight, module.lora_B[name].weight))
        return out

    def _load(self, name: str, adapter: np.ndarray, lora_rank: int) -> list[tuple]:
        parameters = self._parameters(name)
        with torch.no_grad():
            for (a, b), (new_a, new_bt) in zip(parameters, split(adapter, self.layout, lora_rank), strict=True):
                a.copy_(torch.from_numpy(np.array(new_a)).to(self.dtype))
                b.copy_(torch.from_numpy(np.array(new_bt.T)).to(self.dtype))
                a.grad = b.grad = None
        return parameters

    def _nll(self, window: Window) -> torch.Tensor:
        """Summed NLL of the window's counting targets; a window starts at position 0 and sees itself only."""
        inputs, rows, targets = self.data.tokens(window)
        logits = self.model(input_ids=torch.from_numpy(inputs)[None]).logits[0]
        if self.head:  # the text's label, in the place of its only counting target
            label = torch.tensor(int(self.data.label[window.sequence]))
            return torch.nn.functional.cross_entropy(logits, label)
        log_probability = torch.log_softmax(logits[torch.from_numpy(rows)], dim=-1)
        return -log_probability.gather(1, torch.from_numpy(targets)[:, None]).sum()

    def _regulariser(self, parameters: list[tuple], start: int) -> torch.Tensor:
        """Sum over matrices of the product of the tails' norms; its subgradient at 0 is 0 (torch.linalg.norm)."""
        epsilon = float(self.settings.get("strategy.tail_norm_epsilon", 0.0))

        def norm(x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt((x * x).sum() + epsilon) if epsilon > 0 else torch.linalg.norm(x)

        return sum(norm(b[:, start:]) * norm(a[start:]) for a, b in parameters)

    def _optimizer(self, parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        get = self.settings.get
        decay = float(get("local.weight_decay", 0.0))
        if get("local.optimizer", "adamw") == "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=decay)
        betas = (float(get("local.adam_beta1", 0.9)), float(get("local.adam_beta2", 0.999)))
        epsilon = float(get("local.adam_epsilon", 1e-8))
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, eps=epsilon, weight_decay=decay)

    def train(self, task: Task) -> Participation:
        """One participation from the received adapter."""
        lora_rank = task.size
        parameters = self._load(self._adapter(lora_rank), task.received, lora_rank)
        flat = [x for pair in parameters for x in pair]
        before = [x.detach().clone() for x in flat]
        frozen = self._frozen(task.masks)
        optimizer = self._optimizer(flat, task.learning_rate)  # fresh state each participation
        start = self.settings.tail_start(lora_rank)
        penalty = float(self.settings.get("strategy.prune_lambda", 0.01)) if self.tail and start < lora_rank else 0.0
        clip = float(self.settings.get("local.clip_norm", 0.0))
        head = None
        if self.head:
            head = HeadTraining(self.head, task.head, self._optimizer, task.head_learning_rate, clip)
        out = Participation(lora_rank_after=lora_rank)
        for batch in task.batches:
            optimizer.zero_grad()
            count = sum(len(window.positions) for window in batch)
            loss = 0.0
            with float64_parts(self.dtype):
                for window in batch:
                    nll = self._nll(window)
                    (nll / count).backward()
                    loss += float(nll.detach()) / count
            if penalty > 0:
                (penalty * self._regulariser(parameters, start)).backward()
            if task.prox_mu > 0:
                distance = sum(((x - y) ** 2).sum() for x, y in zip(flat, before, strict=True))
                (0.5 * task.prox_mu * distance).backward()
            for x, rows in zip(flat, frozen, strict=True):
                x.grad[rows] = 0
            if clip > 0:
                torch.nn.utils.clip_grad_norm_(flat, clip)
            optimizer.step()
            if head:
                head.step()
            with torch.no_grad():  # weight decay too leaves frozen entries alone
                for x, rows, old in zip(flat, frozen, before, strict=True):
                    x[rows] = old[rows]
            out.losses.append(loss)
            out.n_loss_tokens.append(count)
        trained = join([(a.detach().double().numpy(), b.detach().double().numpy().T) for a, b in parameters])
        out.finite = bool(np.isfinite(out.losses).all() and np.isfinite(trained).all())
        if self.head:
            out.head = self.head.values()
            out.finite = out.finite and bool(np.isfinite(out.head).all())
        if not out.finite:
            return out
        out.trained = out.sent = trained
        if self.tail and start < lora_rank:
            self._prune(out, task.received if task.reference is None else task.reference, lora_rank, start)
        return out

    def _frozen(self, masks: list[tuple[np.ndarray, np.ndarray]] | None) -> list[tuple]:
        """Indices of what does not train in A [r, d_in] and B [d_out, r] of every matrix."""
        out = []
        for train_a, train_b in masks or [(np.ones(0, bool), np.ones(0, bool))] * len(self.layout):
            slots_a, slots_b = torch.from_numpy(np.flatnonzero(~train_a)), torch.from_numpy(np.flatnonzero(~train_b))
            out += [(slots_a,), (slice(None), slots_b)]
        return out

    def _prune(self, out: Participation, reference: np.ndarray, lora_rank: int, start: int) -> None:
        """Once, after training: strictly smaller tail than the reference's -> keep `start` slots."""
        out.tail_before = tail_norm(reference, self.layout, lora_rank, start)
        out.tail_after = tail_norm(out.trained, self.layout, lora_rank, start)
        if out.tail_after < out.tail_before:
            out.lora_rank_after = start
            out.sent = join([(a[:start], bt[:start]) for a, bt in split(out.trained, self.layout, lora_rank)])

    def evaluate(self, adapter: np.ndarray, lora_rank: int, windows: Sequence[Window]) -> float:
        """Token-weighted mean NLL (nats) of the windows with this adapter."""
        self._load(self._adapter(lora_rank), adapter, lora_rank)
        return mean_nll(self, windows)


def mean_nll(trainer: ClientTrainer, windows: Sequence[Window]) -> float:
    """Token-weighted mean NLL (nats) of the windows with whatever the trainer's model holds."""
    total, count = 0.0, 0
    with torch.no_grad(), float64_parts(trainer.dtype):
        for window in windows:
            total += float(trainer._nll(window))
            count += len(window.positions)
    return total / count if count else float("nan")
