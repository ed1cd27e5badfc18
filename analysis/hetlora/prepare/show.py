"""What `prepare` prints: samples with the loss mask made visible, and the counts of the file that was written."""

import numpy as np

from hetlora.prepare.data_file import Prepared, Sequence, prompt_length
from hetlora.prepare.splits import PART_NAMES
from hetlora.prepare.tokenizer import TextTokenizer

LONGEST = 1500  # tokens of a sample that are printed


def marked_text(ids: np.ndarray, mask: np.ndarray, vocabulary: list[bytes]) -> str:
    """The text of a sequence with every run of loss tokens in [[ ]]."""
    pieces, inside = [], False
    for index, flag in zip(ids, mask, strict=True):
        if bool(flag) != inside:
            pieces.append(b"[[" if flag else b"]]")
            inside = bool(flag)
        pieces.append(vocabulary[index])
    return b"".join(pieces + ([b"]]"] if inside else [])).decode("utf-8", errors="replace")


def shown_text(prepared: Prepared, sequence: Sequence, vocabulary: list[bytes]) -> str:
    """The marked text of a sequence; in a classification its label in place of the last token."""
    ids, mask = sequence.tokens()
    if prepared.task == "classification":
        text = marked_text(ids[: min(LONGEST, len(ids) - 1)], mask[: min(LONGEST, len(ids) - 1)], vocabulary)
        return f"{text} [[{prepared.labels[sequence.label]}]]"
    return marked_text(ids[:LONGEST], mask[:LONGEST], vocabulary)


def print_samples(prepared: Prepared, tokenizer: TextTokenizer, n: int) -> None:
    """Print `n` sequences, the first ones of clients spread evenly (of the only client if there is one)."""
    vocabulary = tokenizer.vocabulary() if n else []
    clients = prepared.clients
    only = clients[0].sequences if len(clients) == 1 else None
    many = len(clients) if only is None else len(only)
    shown = min(n, many)
    for at in (i * many // shown for i in range(shown)):
        client = clients[at] if only is None else clients[0]
        sequence = client.sequences[0] if only is None else only[at]
        label = "" if sequence.label < 0 else f", label {prepared.labels[sequence.label]}"
        cut = f", first {LONGEST} shown" if len(sequence.ids) > LONGEST else ""
        print(
            f"--- client {client.name}, {PART_NAMES[sequence.part]}{label}: {len(sequence.ids)} tokens, "
            f"{int(sequence.mask.sum())} loss tokens, prompt_length {prompt_length(sequence.mask)}{cut}"
        )
        print(shown_text(prepared, sequence, vocabulary))
    if n:
        print("---")


def print_summary(
    path: str, prepared: Prepared, tokenizer: TextTokenizer, style: str, summary: dict, seconds: float
) -> None:
    """Print the counts that `describe` made."""
    plural = "" if summary["clients"] == 1 else "s"
    print(
        f"wrote {path}: {summary['clients']} client{plural} ({summary['held_out']} held out), "
        f"{summary['tokens']:,} tokens, {summary['loss_tokens']:,} loss tokens "
        f"({summary['loss_tokens'] / summary['tokens']:.1%}), {seconds:.1f} s"
    )
    print(f"  tokenizer {tokenizer.name} ({tokenizer.vocab_size} tokens), style {style}, licence {prepared.license}")
    for part, counts in summary["parts"].items():
        print(
            f"  {part:<5} {counts['sequences']:>7,} sequences {counts['tokens']:>12,} tokens "
            f"{counts['loss_tokens']:>12,} loss tokens"
        )
    for line in prepared.notes:
        print(f"  {line}")
    for what, names in (("labels", prepared.labels), ("groups", prepared.groups)):
        if names:
            print(f"  {what}: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}")
