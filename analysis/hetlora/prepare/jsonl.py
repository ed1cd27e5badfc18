"""`prepare jsonl|csv|parquet`: the user's own records, with fields, a template, a length policy and a split."""

import json
from pathlib import Path

import numpy as np

from hetlora.errors import InputError, UsageError
from hetlora.files import sha256_of_all
from hetlora.prepare import splits
from hetlora.prepare.chat_format import ChatFormat, choose_format
from hetlora.prepare.choices import check_labels_alike, replies
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.lengths import truncate
from hetlora.prepare.own_options import FIELDS, apply_mapping, check_fields, label_words, source_files
from hetlora.prepare.own_records import Record, picker
from hetlora.prepare.own_splits import Placed, check_labels, place
from hetlora.prepare.own_statistics import Account
from hetlora.prepare.tables import read_table
from hetlora.prepare.templates import RecordTemplate, load_template
from hetlora.prepare.tokenizer import TextTokenizer


def prepare_jsonl(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Build the clients (in order of appearance); the order of a client's records is its time line."""
    apply_mapping(options)
    check_fields(options)
    words = label_words(options)
    positions = check_positions(options)
    template = None
    if options.template == "chat":
        chat = choose_format(tokenizer, "template", options.default_system)
    elif options.template is not None:
        template = load_template(options.template)
    files = source_files(options)
    pick = picker(options, words)
    records = [record for file in files for record in read_table(file, options.verb, pick, options.skip_bad)]
    if not records:
        raise InputError(f"{options.files[0]} holds no usable record; check the field names")
    records = chosen_clients(records, options)
    placed, rule = place(records, options)
    placed = check_labels(placed, options.skip_bad)
    names = label_names(placed, words)
    groups = sorted({one.record.group for one in placed if one.record.group is not None})
    account = Account(rule=rule, positions=positions)
    ways = (tokenizer, chat, template)
    whole = encode([one.record for one in placed], options, ways)
    sequences = [fitted(*pair, one, options, account) for pair, one in zip(whole, placed, strict=True)]
    own = [replies(one.record, one.record.choices, lambda changed: encode(changed, options, ways)) for one in placed]
    clients = build_clients(placed, sequences, own, options, (names, groups))
    label_choices = label_answers([one.record for one in placed], whole, options, (names, words, ways))
    account.count_duplicates(placed)
    account.count_clients(clients)
    return Prepared(
        name=files[0].name.split(".")[0],
        source=", ".join(file.name for file in files),
        source_sha256=sha256_of_all(files),
        license=options.license,
        recipe=recipe(options, template, chat, account),
        clients=clients,
        labels=[words[label] for label in names] if words else names,
        groups=groups,
        label_choices=label_choices,
        notes=account.lines(),
    )


def recipe(options, template: RecordTemplate | None, chat: ChatFormat, account: Account) -> dict:
    """The options that led to the data, and what they did to it."""
    return {
        "verb": options.verb,
        "style": "text" if options.text_field else template.name if template else chat.style,
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


def chosen_clients(records: list[Record], options) -> list[Record]:
    """The records of --max-clients clients, chosen by hash."""
    if not options.max_clients:
        return records
    clients = sorted(
        {record.client for record in records}, key=lambda name: splits.unit_hash(options.seed, "max-clients", name)
    )
    kept = set(clients[: options.max_clients])
    return [record for record in records if record.client in kept]


def label_names(placed: list[Placed], words: dict[str, str] | None) -> list[str]:
    """The labels in the order of their ids: that of --label-words, else sorted."""
    found = {one.record.label for one in placed if one.record.label is not None}
    return [label for label in words if label in found] if words else sorted(found)


def encode(records: list[Record], options, ways: tuple) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, mask) of every record, before the length policy."""
    tokenizer, chat, template = ways
    unique: dict[str, None] = {}
    if template is None:
        unique = {words: None for record in records for _, words in record.turns}
    ids = dict(zip(unique, tokenizer.encode(list(unique)), strict=True))
    bos = np.array([tokenizer.bos_id] if tokenizer.bos_id >= 0 else [], dtype=np.int32)
    eos = np.array([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [], dtype=np.int32)
    result = []
    for record in records:
        turns = record.turns
        if template is not None:
            tokens, mask = template.assemble(record.values, tokenizer)
        elif options.text_field is not None:
            tokens = np.concatenate([bos, ids[turns[0][1]], eos])
            mask = np.ones(len(tokens), dtype=np.uint8)
            mask[:1] = 0
        else:
            system = ids[turns[0][1]] if turns[0][0] == "system" else None
            spoken = [(role == "assistant", ids[words], True) for role, words in turns if role != "system"]
            tokens, mask = chat.assemble(spoken, system)
        result.append((tokens, mask))
    return result


def label_answers(records: list[Record], whole: list[tuple], options, about: tuple) -> list[np.ndarray]:
    """The tokens of every label's word as a reply; none without --label-choices."""
    if not options.label_choices:
        return []
    names, words, ways = about
    texts = [words[label] if words else label for label in names]
    found = replies(records[0], texts, lambda changed: encode(changed, options, ways))
    check_labels_alike(records, whole, found, {label: i for i, label in enumerate(names)})
    return found


def fitted(tokens: np.ndarray, mask: np.ndarray, one: Placed, options, account: Account) -> tuple | None:
    """A sequence within --max-length, or None where it is left out."""
    account.lengths.append(len(tokens))
    limit = options.max_length
    if limit and len(tokens) > limit:
        if options.length_policy == "error":
            raise InputError(
                f"{one.record.where}: {len(tokens)} tokens are more than --max-length {limit}; "
                "take --length-policy truncate or drop, or a larger length"
            )
        if options.length_policy == "drop":
            account.dropped += 1
            return None
        tokens, mask = truncate(tokens, mask, limit, options.truncation_side)
        account.truncated += 1
        account.lost_to_truncation += not mask.any()
    if len(tokens) < 2 or not mask.any():  # nothing to predict
        account.without_loss += 1
        return None
    return tokens, mask


def build_clients(placed: list[Placed], sequences: list, own: list, options, names: tuple) -> list[Client]:
    """Clients in order of appearance; `own`: the answers of each record.

    InputError for a client that has nothing left, unless --skip-bad.
    """
    label_id = {name: i for i, name in enumerate(names[0])}
    group_id = {name: i for i, name in enumerate(names[1])}
    clients: dict[str, Client] = {}
    first: dict[str, str] = {}
    for one, pair, choices in zip(placed, sequences, own, strict=True):
        client = clients.setdefault(one.client, Client(one.client, [], one.held_out))
        first.setdefault(one.client, one.record.where)
        if pair is not None:
            label = label_id.get(one.record.label, -1)
            group = group_id.get(one.record.group, -1)
            client.sequences.append(Sequence(pair[0], pair[1], one.part, label, group, choices, one.record.answer))
    empty = [name for name, client in clients.items() if not client.sequences]
    if empty and not options.skip_bad:
        more = f" and {len(empty) - 1} more clients" if len(empty) > 1 else ""
        raise InputError(
            f"client {empty[0]!r}{more} would be empty: all records are left out as too long or without a loss token "
            f"(the first: {first[empty[0]]}); change --length-policy, or leave such clients out with --skip-bad"
        )
    return [client for client in clients.values() if client.sequences]
