"""`prepare tokenizer`: a byte-level BPE tokenizer with the turn tokens, trained on text files."""

import json
from pathlib import Path

from hetlora.errors import UsageError, need
from hetlora.files import atomic_folder
from hetlora.prepare.chat_format import BOS, END, ME, USER
from hetlora.prepare.documents import collect

SPECIAL = [BOS, USER, ME, END]  # ids 0, 1, 2, 3
SMALLEST = 256 + len(SPECIAL)  # every byte has a token, so any text can be written


def train_tokenizer(options) -> str:
    """Train on the documents of the input files and write the folder; returns a summary line.

    Digits are split one by one and the text then into words by the rule of GPT-2, so that tokens never cross words.
    """
    if options.vocab_size < SMALLEST:
        raise UsageError(f"--vocab-size {options.vocab_size}: at least {SMALLEST} are needed (all bytes and {SPECIAL})")
    tokenizers = need("tokenizers", "data")
    documents, report, _ = collect(options)
    for label, n, size in report:
        print(f"{label}: {n:,} documents, {size / 1e6:.2f} MB")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((words for document in documents for _, words in document.turns), trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    with atomic_folder(Path(options.out), marker="tokenizer.json") as folder:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = sum(n_bytes for _, _, n_bytes in report)
    got = tokenizer.get_vocab_size()
    short = f" (the text has no more pairs; {options.vocab_size} were asked for)" if got < options.vocab_size else ""
    return f"wrote {options.out}: {got} tokens{short}, trained on {size / 1e6:.2f} MB"
