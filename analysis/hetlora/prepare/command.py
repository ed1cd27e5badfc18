"""`hetlora prepare chitchat|msc|jsonl|csv|parquet|text|tokenizer`: the command line of data preparation."""

import argparse
import math
import time

from hetlora.errors import UsageError
from hetlora.prepare.chat_format import STYLES, choose_format
from hetlora.prepare.own_options import add_own_options
from hetlora.prepare.tables import KINDS


def fraction(text: str) -> float:
    """argparse type: a number in [0, 1)."""
    value = float(text)
    if not (math.isfinite(value) and 0 <= value < 1):
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def count(text: str) -> int:
    """argparse type: a whole number >= 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def megabytes(text: str) -> float:
    """argparse type: a positive number of megabytes (10^6 bytes of UTF-8)."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parser() -> argparse.ArgumentParser:
    """The argument parser of `prepare` and its verbs."""
    top = argparse.ArgumentParser(prog="hetlora prepare", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, about: str, clients: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=about, description=about)
        sub.add_argument("--tokenizer", metavar="DIR", help="folder with tokenizer.json (default: --model)")
        sub.add_argument("--model", metavar="DIR", help="the model's folder: its tokenizer, checked against the model")
        sub.add_argument("--output", "--out", dest="out", required=True, metavar="FILE", help="the .h5 file to write")
        sub.add_argument("--seed", type=count, default=0, help="seed of all hashes (default 0)")
        sub.add_argument("--show", type=count, default=0, metavar="N", help="print N samples, loss tokens in [[ ]]")
        sub.add_argument("--style", choices=STYLES, default="auto", help="how turns are written (default auto)")
        sub.add_argument(
            "--default-system", action="store_true", help="keep the system text that the chat template adds by itself"
        )
        if clients:
            sub.add_argument(
                "--held-out-fraction",
                type=fraction,
                default=0.1,
                help="share of clients that never train (default 0.1)",
            )
        return sub

    chitchat = add("chitchat", "open chats of students (PyPI chitchat-dataset); a client is a person")
    chitchat.add_argument("--input", metavar="FILE", help="dataset.json (default: of the installed package)")
    chitchat.add_argument(
        "--min-words", type=count, default=100, help="leave out people with fewer words (default 100)"
    )
    chitchat.add_argument("--max-clients", type=count, default=0, help="keep this many, chosen by hash (0 = all)")
    msc = add("msc", "Multi-Session Chat, sessions 1-3; a client is a speaker of an episode")
    msc.add_argument("input", metavar="FILE.jsonl[.xz]")
    msc.add_argument("--max-clients", type=count, default=0, help="keep this many, chosen by hash (0 = all)")
    msc.add_argument("--skip-bad", action="store_true", help="leave bad lines out instead of refusing the file")
    for kind, files in KINDS.items():
        add_own_options(add(kind, f"your own data: {files}"), files)

    def add_text_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("files", nargs="*", metavar="FILE", help=".txt or .jsonl, each may end in .xz")
        sub.add_argument("--text-field", default="text", help="field of .jsonl files (default text)")
        sub.add_argument(
            "--dialogue",
            action="append",
            default=[],
            metavar="FILE:SPEAKER_FIELD:GROUP_FIELD[,...]",
            help="a .jsonl of speeches in order, made into two-person conversations; may be repeated",
        )
        sub.add_argument(
            "--quoted", action="store_true", help="also make conversations of the quoted speech in FILEs (novels)"
        )
        sub.add_argument("--piece-chars", type=count, default=3000, help="longest document, characters (default 3000)")
        sub.add_argument(
            "--max-megabytes",
            type=megabytes,
            metavar="MB",
            help="use at most this much of each file, by hash of pieces",
        )
        sub.add_argument("--skip-bad", action="store_true", help="leave bad lines out instead of refusing the file")

    text = add(
        "text",
        "plain text for pretraining: every token is trained on, the last 1 percent kept for validation",
        clients=False,
    )
    add_text_options(text)
    text.add_argument("--license", default="not stated", help="licence of the text, kept in the file")
    tokenizer = verbs.add_parser("tokenizer", help="train a byte-level BPE tokenizer with the turn tokens")
    add_text_options(tokenizer)
    tokenizer.add_argument("--vocab-size", type=count, default=2048)
    tokenizer.add_argument("--seed", type=count, default=0, help="seed of the choice of pieces (default 0)")
    tokenizer.add_argument("--out", required=True, metavar="DIR", help="folder for tokenizer.json and its config")
    return top


def chosen_tokenizer(options) -> str:
    """The folder of the tokenizer: --tokenizer, else --model. UsageError without either."""
    if options.tokenizer is None and options.model is None:
        raise UsageError("give --tokenizer DIR, or --model DIR for a model's own tokenizer")
    return options.tokenizer or options.model


def build(options, tokenizer, chat):
    """The Prepared data of the verb."""
    if options.verb == "chitchat":
        from hetlora.prepare.chitchat import prepare_chitchat as prepare
    elif options.verb == "msc":
        from hetlora.prepare.msc import prepare_msc as prepare
    elif options.verb in KINDS:
        from hetlora.prepare.jsonl import prepare_jsonl as prepare
    else:
        from hetlora.prepare.text import prepare_text as prepare
    return prepare(options, tokenizer, chat)


def main(argv: list[str]) -> int:
    """Run `prepare`; returns 0 or raises a UserError."""
    options = parser().parse_args(argv)
    started = time.perf_counter()
    if options.verb in ("text", "tokenizer") and not options.files and not options.dialogue:
        raise UsageError("no input: give text files, or --dialogue FILE:SPEAKER_FIELD:GROUP_FIELD")
    if options.verb == "tokenizer":
        from hetlora.prepare.train_tokenizer import train_tokenizer

        print(train_tokenizer(options))
        return 0
    from hetlora.prepare.data_file import write
    from hetlora.prepare.show import print_samples, print_summary
    from hetlora.prepare.tokenizer import check_model, load_tokenizer

    tokenizer = load_tokenizer(chosen_tokenizer(options))
    check_model(options.model, tokenizer)
    chat = choose_format(tokenizer, options.style, options.default_system)
    prepared = build(options, tokenizer, chat)
    summary = write(options.out, prepared, tokenizer)
    print_samples(prepared, tokenizer, options.show)
    if getattr(options, "samples_page", None):
        from hetlora.prepare.samples_page import write_samples_page

        write_samples_page(options.samples_page, prepared, tokenizer, summary)
    print_summary(
        options.out,
        prepared,
        tokenizer,
        prepared.recipe.get("style", chat.style),
        summary,
        time.perf_counter() - started,
    )
    return 0
