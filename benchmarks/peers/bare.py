"""The bare loop: transformers + peft + torch.optim, one client at a time. What most papers' code does, done with care.

One model stays in memory; a client's adapter is copied into it in place, the average is accumulated in place, no tensor
leaves torch within a round. Precisions: fp32; autocast (fp32 weights under bf16 autocast); bf16 (frozen weights kept in
bf16, adapters in fp32).
"""

from __future__ import annotations

import argparse
import contextlib

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peers import recorder as rec
from peers.schedule import IGNORED, Schedule

ATTENTIONS = ("sdpa", "eager")


def load_model(folder: str, schedule: Schedule, precision: str, attention: str) -> PeftModel:
    """The frozen base with a PEFT adapter that holds the initial values."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, local_files_only=True
    )
    base.config.use_cache = False
    rank = schedule.lora_rank
    targets = sorted({name.rsplit(".", 1)[1] for name in schedule.matrices})
    config = LoraConfig(r=rank, lora_alpha=schedule.scale * rank, lora_dropout=0.0, bias="none", target_modules=targets)
    model = get_peft_model(base, config).train()
    for parameter, values in zip(adapter_parameters(model, schedule), schedule.initial, strict=True):
        parameter.data.copy_(torch.from_numpy(values))
    return model


def adapter_parameters(model: PeftModel, schedule: Schedule) -> list[torch.nn.Parameter]:
    """A and B of each matrix in turn."""
    modules = [model.base_model.model.get_submodule(name) for name in schedule.matrices]
    return [x for m in modules for x in (m.lora_A["default"].weight, m.lora_B["default"].weight)]


class BareLoop:
    """FedAvg, one client at a time."""

    def __init__(self, arguments: argparse.Namespace, schedule: Schedule, recorder: rec.Recorder) -> None:
        self.schedule, self.precision = schedule, arguments.precision
        attention = ATTENTIONS[0] if arguments.attention == "auto" else arguments.attention
        self.model = load_model(str(arguments.model), schedule, arguments.precision, attention)
        self.parameters = adapter_parameters(self.model, schedule)
        self.optimizer = torch.optim.SGD(self.parameters, lr=schedule.learning_rate, foreach=True)  # it has no state
        self.received = [parameter.detach().clone() for parameter in self.parameters]
        if arguments.attention == "auto":
            self._choose_attention(recorder)
        else:
            recorder.facts["attention"] = attention

    def _choose_attention(self, recorder: rec.Recorder) -> None:
        rows = self.schedule.windows[0, 0, 0]

        def one_step(name: str) -> None:
            self.model.get_base_model().set_attn_implementation(name)
            self.loss(rows)[0].backward()
            self.optimizer.zero_grad()

        best = rec.fastest({name: lambda n=name: one_step(n) for name in ATTENTIONS}, recorder, "attention")
        self.model.get_base_model().set_attn_implementation(best)

    def loss(self, rows) -> tuple[torch.Tensor, int]:
        """(mean loss of these windows, number of loss tokens)."""
        inputs, targets = (torch.from_numpy(x) for x in self.schedule.batch(rows))
        cast = torch.autocast("cpu", torch.bfloat16) if self.precision == "autocast" else contextlib.nullcontext()
        with cast:
            logits = self.model(input_ids=inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        return loss, int((targets != IGNORED).sum())

    def local_steps(self, batches) -> tuple[torch.Tensor, int]:
        """One client's steps from the adapter that the model holds. (sum of losses over loss tokens, their number)."""
        nll, count = torch.zeros((), dtype=torch.float64), 0
        for rows in batches:
            self.optimizer.zero_grad()
            loss, n = self.loss(rows)
            loss.backward()
            self.optimizer.step()
            nll += loss.detach() * n
            count += n
        return nll, count

    def train_round(self, number: int) -> float:
        """Mean loss per token of the round's local steps."""
        mean = [torch.zeros_like(values) for values in self.received]
        nll, count = torch.zeros((), dtype=torch.float64), 0
        for batches, weight in zip(self.schedule.windows[number], self.schedule.weights[number], strict=True):
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.received)
            of_client, n = self.local_steps(batches)
            nll += of_client
            count += n
            with torch.no_grad():
                torch._foreach_add_(mean, self.parameters, alpha=float(weight))
        self.received = mean
        return float(nll) / count

    def adapter(self) -> list[torch.Tensor]:
        """The global adapter."""
        return self.received


def main() -> None:
    """Command line."""
    parser = rec.parser("transformers + peft, one client at a time")
    parser.add_argument("--precision", choices=("fp32", "autocast", "bf16"), default="fp32")
    rec.run(parser.parse_args(), BareLoop)


if __name__ == "__main__":
    main()
