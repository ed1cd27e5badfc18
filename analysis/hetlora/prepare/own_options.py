"""The command line of `prepare jsonl|csv|parquet`: files, fields, template, length policy, split."""

import argparse
import json
import math
from pathlib import Path

from hetlora.errors import InputError, UsageError
from hetlora.files import existing_file
from hetlora.prepare.classification import check_classification
from hetlora.prepare.lengths import POLICIES, SIDES

FIELDS = ("client", "text", "prompt", "context", "response", "messages", "label", "group", "split",
          "choices", "answer")  # fmt: skip
MORE_KEYS = ("template", "label_words")
TASKS = ("causal", "classification")


def share(text: str) -> float:
    """argparse type: a number in [0, 1)."""
    value = float(text)
    if not (math.isfinite(value) and 0 <= value < 1):
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def positive(text: str) -> int:
    """argparse type: a whole number > 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def add_own_options(sub: argparse.ArgumentParser, kinds: str) -> None:
    """Add the options of own data to a verb; `kinds` says which files it reads."""
    sub.add_argument("files", nargs="+", metavar="FILE", help=f"{kinds}; several are read one after another")
    about = {
        "client": "names the client (default: no clients of its own, see data.partition)",
        "text": "the whole text is trained on",
        "prompt": "what is asked, never trained on",
        "context": "more of the prompt, may be blank ('input' of alpaca)",
        "response": "what is trained on (default with --label-field: the label's word)",
        "messages": "a list of {role, content}; the assistant's turns are trained on",
        "label": "class of each record",
        "group": "task, topic or source of each record (for data.dirichlet_by = group)",
        "split": "says train, valid or test",
        "choices": "a list of answers of each record's own, for choice_accuracy",
        "answer": "which of them is right: its place in the list (from 0), or its text",
    }
    sub.add_argument(
        "--task",
        choices=TASKS,
        default="causal",
        help="causal: the model learns to write the response; classification: to name the label of a text "
        "(default causal)",
    )
    for name in FIELDS:
        sub.add_argument(f"--{name}-field", metavar="FIELD", help=about[name])
    sub.add_argument("--mapping", metavar="FILE", help='JSON with these choices, e.g. {"prompt": "instruction"}')
    sub.add_argument(
        "--template",
        metavar="chat|alpaca|plain|FILE",
        help="how prompt and response are written: the tokenizer's chat template, a known one, or a Jinja file with "
        "{{ prompt }}, {{ context }}, any field, and {{ response }} (default: as --style)",
    )
    sub.add_argument("--label-words", metavar="LABEL=WORD,...", help="the response to each label (default: its name)")
    sub.add_argument(
        "--label-choices", action="store_true", help="keep the words of the labels as answers to choose among"
    )
    sub.add_argument("--max-length", type=positive, metavar="TOKENS", help="longest sequence (default: any)")
    sub.add_argument(
        "--length-policy",
        choices=POLICIES,
        default="truncate",
        help="with --max-length: truncate, drop the record, or refuse the data (error) (default truncate)",
    )
    sub.add_argument(
        "--truncation-side",
        choices=SIDES,
        help="what is cut away: the prompt's start, then the end (prompt); the sequence's start (left) or end (right) "
        "(default prompt; right with --task classification)",
    )
    sub.add_argument(
        "--valid-fraction", type=share, metavar="F", help="share of records for valid, by hash (no client field: 0.1)"
    )
    sub.add_argument(
        "--test-fraction", type=share, metavar="F", help="share of records for test, by hash (no client field: 0.1)"
    )
    sub.add_argument("--license", default="not stated", help="licence of the data, kept in the file")
    sub.add_argument("--max-clients", type=int, default=0, help="keep this many, chosen by hash (0 = all)")
    sub.add_argument("--skip-bad", action="store_true", help="leave bad records out instead of refusing the file")
    sub.add_argument("--samples-page", metavar="FILE.html", help="write a page of samples with the loss mask visible")


def apply_mapping(options) -> None:
    """Fill fields that were not given on the command line from --mapping. UsageError for keys that mean nothing."""
    if not options.mapping:
        return
    file = existing_file(options.mapping, "the mapping of fields")
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f'{file} is not JSON: {error}; write e.g. {{"prompt": "instruction"}}') from error
    if not isinstance(mapping, dict) or not all(isinstance(value, (str, dict)) for value in mapping.values()):
        raise InputError(f'{file} is not one object of names; write e.g. {{"prompt": "instruction"}}')
    for key, value in mapping.items():
        if key not in FIELDS + MORE_KEYS:
            raise UsageError(f"{file}: unknown key {key!r}; there are {', '.join(FIELDS + MORE_KEYS)}")
        name = key if key in MORE_KEYS else f"{key}_field"
        if isinstance(value, dict):
            if key != "label_words":
                raise InputError(f"{file}: {key!r} is an object, but the name of a field is wanted")
            value = ",".join(f"{label}={word}" for label, word in value.items())
        if getattr(options, name) is None:
            setattr(options, name, value)


def check_fields(options) -> None:
    """UsageError unless the fields say one thing: texts, messages, prompt and response, or prompt and label."""
    if options.truncation_side is None:
        options.truncation_side = "right" if options.task == "classification" else "prompt"
    check_counts(options)
    if options.task == "classification":
        check_classification(options)
        return
    given = {name for name in FIELDS if getattr(options, f"{name}_field") is not None}
    text, messages = "text" in given, "messages" in given
    choices = "choices" in given
    if choices != ("answer" in given):
        raise UsageError("--choices-field and --answer-field go together: the answers, and which one is right")
    if choices and ("prompt" not in given or "response" in given or options.label_choices):
        raise UsageError("--choices-field needs --prompt-field, and neither --response-field nor --label-choices")
    if options.label_choices and ("label" not in given or "prompt" not in given or "response" in given):
        raise UsageError("--label-choices needs --prompt-field and --label-field without --response-field")
    pair = "prompt" in given and ("response" in given or "label" in given or choices)
    parts = given & {"prompt", "context", "response"}
    if text + messages + pair != 1 or ((text or messages) and parts):
        raise UsageError(
            "give either --text-field, or --messages-field, or both --prompt-field and --response-field "
            "(or --label-field)"
        )
    if options.template not in (None, "chat") and (text or messages):
        kind = "--text-field" if text else "--messages-field"
        raise UsageError(f"--template {options.template} with {kind}: a template is for --prompt-field and a response")
    if options.template == "chat" and text:
        raise UsageError("--template chat with --text-field: a template is for --prompt-field and a response")
    if options.label_words and ("label" not in given or "response" in given):
        raise UsageError("--label-words is used with --label-field and without --response-field only")


def check_counts(options) -> None:
    """UsageError for numbers that make no sense together."""
    if options.max_clients < 0:
        raise UsageError(f"--max-clients {options.max_clients} is negative")
    fractions = (options.valid_fraction or 0) + (options.test_fraction or 0)
    if fractions >= 1:
        raise UsageError(f"--valid-fraction and --test-fraction are {fractions} together: nothing would train")


def label_words(options) -> dict[str, str] | None:
    """label -> word of --label-words; None if it was not given."""
    if not options.label_words:
        return None
    words = {}
    for part in options.label_words.split(","):
        label, sign, word = part.partition("=")
        if not sign or not label.strip() or not word.strip():
            raise UsageError(f"--label-words: {part!r} is not LABEL=WORD")
        if label.strip() in words or word.strip() in words.values():
            raise UsageError(f"--label-words: {part!r} occurs twice")
        words[label.strip()] = word.strip()
    return words


def source_files(options) -> list[Path]:
    """The input files, each there and named once."""
    files = [existing_file(name, "records") for name in options.files]
    if len({file.resolve() for file in files}) < len(files):
        raise UsageError("a file is named twice: its records would be trained on twice")
    return files
