"""`prepare jsonl`: the user's own records, one JSON object a line, with a field that names the client."""

from pathlib import Path

import numpy as np

from hetlora.errors import InputError, UsageError
from hetlora.files import sha256_of
from hetlora.prepare import splits
from hetlora.prepare.chat_format import ChatFormat
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.records import name_field, read_records, text_field
from hetlora.prepare.tokenizer import TextTokenizer


def check_fields(options) -> None:
    """UsageError unless exactly one of --text-field and the pair --prompt-field, --response-field is given."""
    pair = (options.prompt_field is not None, options.response_field is not None)
    if options.text_field is not None and not any(pair):
        return
    if options.text_field is None and all(pair):
        return
    raise UsageError("give either --text-field, or both --prompt-field and --response-field")


def pick_record(options):
    """A function record -> (client, prompt or None, response or text, label or None) for `read_records`."""

    def pick(record: dict) -> tuple[str, str | None, str, str | None]:
        client = name_field(record, options.client_field)
        label = None if options.label_field is None else name_field(record, options.label_field)
        if options.text_field is not None:
            return client, None, text_field(record, options.text_field), label
        return client, text_field(record, options.prompt_field), text_field(record, options.response_field), label

    return pick


def prepare_jsonl(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Build the clients (in order of appearance); the order of a client's lines is its time line."""
    check_fields(options)
    rows = list(read_records(options.input, "records", pick_record(options), options.skip_bad))
    if not rows:
        raise InputError(f"{options.input} holds no usable record; check the field names")
    by_client: dict[str, list[tuple[str | None, str, str | None]]] = {}
    for client, prompt, response, label in rows:
        by_client.setdefault(client, []).append((prompt, response, label))
    if options.max_clients:
        kept = sorted(by_client, key=lambda name: splits.unit_hash(options.seed, "max-clients", name))
        kept = set(kept[: options.max_clients])
        by_client = {name: own for name, own in by_client.items() if name in kept}
    labels = sorted({label for own in by_client.values() for *_, label in own if label is not None})
    unique = {text: None for own in by_client.values() for prompt, response, _ in own for text in (prompt, response)}
    unique.pop(None, None)
    ids = dict(zip(unique, tokenizer.encode(list(unique)), strict=True))
    ends = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    bos = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    clients = []
    for name, own in by_client.items():
        held = splits.held_out_part(name, options.held_out_fraction, options.seed)
        parts = splits.time_split(len(own)) if held == splits.TRAIN else [held] * len(own)
        sequences = []
        for (prompt, response, label), part in zip(own, parts, strict=True):
            if prompt is None:
                tokens = np.concatenate([np.array(a, dtype=np.int32) for a in (bos, ids[response], ends)])
                mask = np.ones(len(tokens), dtype=np.uint8)
                mask[:1] = 0
            else:
                tokens, mask = chat.assemble([(False, ids[prompt], True), (True, ids[response], True)])
            if mask.any():  # a text of one token has nothing to predict
                sequences.append(Sequence(tokens, mask, part, -1 if label is None else labels.index(label)))
        if sequences:
            clients.append(Client(name, sequences, held != splits.TRAIN))
    return Prepared(
        name=Path(options.input).name.split(".")[0],
        source=Path(options.input).name,
        source_sha256=sha256_of(Path(options.input).expanduser()),
        license=options.license,
        recipe={
            "verb": "jsonl",
            "style": "text" if options.text_field else chat.style,
            "default_system": options.default_system,
            "fields": {k: getattr(options, f"{k}_field") for k in ("client", "text", "prompt", "response", "label")},
            "held_out_fraction": options.held_out_fraction,
            "max_clients": options.max_clients,
            "seed": options.seed,
        },
        clients=clients,
        labels=labels,
    )
