"""`prepare jsonl|csv|parquet`: the user's own records, with fields, a template, a length policy and a split.

The input is read once. A record's text is forgotten as soon as its tokens are on disk (token_spool.py); what stays in
memory is a row of numbers (own_index.py), from which parts and clients follow, and the order of the file written.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hetlora.errors import InputError, UsageError
from hetlora.files import sha256_of_all
from hetlora.prepare import splits
from hetlora.prepare.answers import Answers
from hetlora.prepare.chat_format import ChatFormat, choose_format
from hetlora.prepare.classification import ClassificationEncoder, label_lines, sorted_labels, text_template
from hetlora.prepare.data_file import Prepared
from hetlora.prepare.own_encoding import RecordEncoder
from hetlora.prepare.own_index import KEPT, TOO_LONG, TRUNCATED, WITHOUT_LOSS, RecordIndex, StoredTokens
from hetlora.prepare.own_options import FIELDS, apply_mapping, check_fields, label_words, source_files
from hetlora.prepare.own_records import Record, picker
from hetlora.prepare.own_splits import Placed, check_labels, place
from hetlora.prepare.own_statistics import Account
from hetlora.prepare.stored_clients import StoredClients
from hetlora.prepare.tables import read_table
from hetlora.prepare.templates import load_template
from hetlora.prepare.token_spool import TokenSpool
from hetlora.prepare.tokenizer import TextTokenizer

BATCH_RECORDS, BATCH_CHARACTERS = 2_000, 2_000_000  # what is in memory as text


def prepare_jsonl(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Build the clients (in order of appearance); the order of a client's records is its time line."""
    apply_mapping(options)
    check_fields(options)
    words = label_words(options)
    positions = check_positions(options)
    encoder, style = record_encoder(options, tokenizer, chat)
    files = source_files(options)
    spool = TokenSpool(scratch_folder(options.out))
    answers = Answers(spool, encoder, words)
    index = read_all(files, options, words, (encoder, spool, answers))
    rows = chosen_clients(index, options)
    placed, rule = place(index, rows, options)
    placed = check_labels(index, placed, options.skip_bad)
    refuse_too_long(index, placed, options)
    account = Account(rule=rule, positions=positions, task=options.task)
    account.count_records(index, placed)
    account.count_clients(index, placed)
    classified = options.task == "classification"
    names = label_names(index, placed, words, sorted_labels if classified else sorted)
    groups = sorted(used_names(index.groups.names, index.column("group")[placed.rows]))
    return Prepared(
        name=files[0].name.split(".")[0],
        source=", ".join(file.name for file in files),
        source_sha256=sha256_of_all(files),
        license=options.license,
        recipe=recipe(options, style, account),
        clients=build_clients(index, placed, options, (spool, names, groups)),
        labels=[words[label] for label in names] if words else names,
        groups=groups,
        label_choices=answers.of_labels(names) if options.label_choices else [],
        notes=account.lines() + (label_lines(index, placed, names, words) if classified else []),
        task=options.task,
    )


def record_encoder(options, tokenizer: TextTokenizer, chat: ChatFormat) -> tuple:
    """(the encoder of the records, the name of its style)."""
    if options.task == "classification":
        template = text_template(options)
        encoder = ClassificationEncoder(tokenizer, template)
        encoder.check_room(options.max_length)
        return encoder, template.name if template else "text"
    template = None
    if options.template == "chat":
        chat = choose_format(tokenizer, "template", options.default_system)
    elif options.template is not None:
        template = load_template(options.template)
    style = "text" if options.text_field else template.name if template else chat.style
    return RecordEncoder(tokenizer, chat, template, options.text_field is not None), style


def scratch_folder(out: str) -> Path:
    """The folder of the file to be written, made if it is not there: the tokens wait on the same disk."""
    folder = Path(out).expanduser().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}; choose another place") from error
    return folder


def batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in lists of bounded size."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += sum(len(words) for _, words in record.turns)
        if len(batch) == BATCH_RECORDS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def read_all(files: list[Path], options, words: dict[str, str] | None, ways: tuple) -> RecordIndex:
    """Every record in the index and its tokens in the spool. `ways`: encoder, spool and answers."""
    encoder, spool, answers = ways
    index = RecordIndex(files, options.seed)
    pick = picker(options, words)
    for file in files:
        index.begin_file()
        for batch in batches(read_table(file, options.verb, pick, options.skip_bad)):
            for record, (tokens, mask) in zip(batch, encoder.encode(batch), strict=True):
                n = len(tokens)
                if options.label_choices:
                    answers.check_label(record, (tokens, mask))
                choices = answers.keep(record)
                tokens, mask, state = fitted(tokens, mask, options, encoder.truncate)
                stored = 0 if state & (TOO_LONG | WITHOUT_LOSS) else len(tokens)
                at = spool.append(tokens, mask) if stored else 0
                index.append(record, StoredTokens(at, n, stored, choices), state)
    if not len(index):
        raise InputError(f"{options.files[0]} holds no usable record; check the field names")
    return index


def recipe(options, style: str, account: Account) -> dict:
    """The options that led to the data, and what they did to it."""
    return {
        "verb": options.verb,
        **({"task": options.task} if options.task != "causal" else {}),
        "style": style,
        "default_system": options.default_system,
        "fields": {name: getattr(options, f"{name}_field") for name in FIELDS},
        "label_words": options.label_words,
        **({"label_choices": True} if options.label_choices else {}),
        "max_length": options.max_length,
        "length_policy": options.length_policy,
        "truncation_side": options.truncation_side,
        "split": account.rule,
        "held_out_fraction": options.held_out_fraction,
        "max_clients": options.max_clients,
        "seed": options.seed,
        "statistics": account.numbers(),
    }


def check_positions(options) -> int:
    """Positions of the model beside the tokenizer (0: unknown). UsageError for a --max-length beyond them."""
    config = Path(options.model or options.tokenizer).expanduser() / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not JSON: {error}") from error
    positions = next((values[key] for key in ("max_position_embeddings", "n_positions") if key in values), 0)
    if not isinstance(positions, int):
        return 0
    if positions and options.max_length and options.max_length > positions:
        raise UsageError(
            f"--max-length {options.max_length} is more than the {positions} positions of the model ({config}); "
            f"give at most {positions}"
        )
    return positions


def chosen_clients(index: RecordIndex, options) -> np.ndarray:
    """Rows of the records of --max-clients clients, chosen by hash."""
    rows = np.arange(len(index))
    if not options.max_clients:
        return rows
    names = index.clients.names
    order = sorted(range(len(names)), key=lambda number: splits.unit_hash(options.seed, "max-clients", names[number]))
    kept = np.zeros(len(names), dtype=bool)
    kept[order[: options.max_clients]] = True
    return rows[kept[index.column("client")]]


def used_names(names: list[str], numbers: np.ndarray) -> list[str]:
    """The names that some record has."""
    return [names[number] for number in np.unique(numbers).tolist() if number >= 0]


def label_names(index: RecordIndex, placed: Placed, words: dict[str, str] | None, order=sorted) -> list[str]:
    """The labels in the order of their ids: that of --label-words, else of the function `order`."""
    found = set(used_names(index.labels.names, index.column("label")[placed.rows]))
    return [label for label in words if label in found] if words else order(found)


def fitted(tokens: np.ndarray, mask: np.ndarray, options, truncate) -> tuple[np.ndarray, np.ndarray, int]:
    """A sequence within --max-length, and what happened to it. `truncate`: that of the encoder."""
    state = KEPT
    limit = options.max_length
    if limit and len(tokens) > limit:
        if options.length_policy != "truncate":
            return tokens, mask, TOO_LONG
        tokens, mask = truncate(tokens, mask, limit, options.truncation_side)
        state = TRUNCATED
    if len(tokens) < 2 or not mask.any():  # nothing to predict
        state |= WITHOUT_LOSS
    return tokens, mask, state


def refuse_too_long(index: RecordIndex, placed: Placed, options) -> None:
    """InputError for the first record beyond --max-length with --length-policy error."""
    if options.length_policy != "error":
        return
    too_long = placed.rows[(index.column("state")[placed.rows] & TOO_LONG) != 0]
    if len(too_long):
        raise InputError(
            f"{index.where(too_long[0])}: {index.column('length')[too_long[0]]} tokens are more than --max-length "
            f"{options.max_length}; take --length-policy truncate or drop, or a larger length"
        )


def build_clients(index: RecordIndex, placed: Placed, options, ways: tuple) -> StoredClients:
    """Clients in order of appearance. InputError for one that has nothing left, unless --skip-bad."""
    spool, labels, groups = ways
    numbers, first = np.unique(placed.client, return_index=True)
    used = index.column("state")[placed.rows] & (TOO_LONG | WITHOUT_LOSS) == 0
    left = np.isin(numbers, placed.client[used])
    names = index.clients.names
    if not left.all() and not options.skip_bad:
        missing = numbers[~left][np.argsort(first[~left])]
        more = f" and {len(missing) - 1} more clients" if len(missing) > 1 else ""
        raise InputError(
            f"client {names[missing[0]]!r}{more} would be empty: all records are left out as too long or without a "
            f"loss token (the first: {index.where(placed.rows[first[~left].min()])}); change --length-policy, or leave "
            "such clients out with --skip-bad"
        )
    order = numbers[left][np.argsort(first[left])]
    place_of = np.zeros(len(names), dtype=np.int64)
    place_of[order] = np.arange(len(order))
    placed = placed.only(used)
    client = place_of[placed.client]
    sort = np.lexsort((placed.part, client))  # stable: time order stays within a part
    rows = placed.rows[sort]
    table = {
        "place": index.column("place")[rows],
        "n_tokens": index.column("stored")[rows],
        "part": placed.part[sort],
        "label": renumbered(index.labels.names, labels)[index.column("label")[rows]],
        "group": renumbered(index.groups.names, groups)[index.column("group")[rows]],
        "answer": index.column("answer")[rows],
        "choices_place": index.column("choices_place")[rows],
        "choices_stored": index.column("choices_stored")[rows],
    }
    offset = np.concatenate([[0], np.cumsum(np.bincount(client, minlength=len(order)))])
    return StoredClients(spool, [(names[c], c in placed.held_out) for c in order.tolist()], table, offset)


def renumbered(names: list[str], final: list[str]) -> np.ndarray:
    """[len(names) + 1]: the place of each name in `final`, and -1 at the end, where -1 (no name) points to."""
    place_of = {name: i for i, name in enumerate(final)}
    return np.array([place_of.get(name, -1) for name in names] + [-1], dtype=np.int32)
