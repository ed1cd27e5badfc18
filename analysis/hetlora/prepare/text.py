"""`prepare text`: documents for pretraining; one client, every token after the first a loss target."""

import numpy as np

from hetlora.errors import InputError
from hetlora.files import sha256_of_all
from hetlora.prepare.chat_format import ChatFormat
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.documents import collect
from hetlora.prepare.splits import TRAIN, VALID, unit_hash
from hetlora.prepare.tokenizer import TextTokenizer

VALID_SHARE = 0.01


def prepare_text(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Shuffle the documents by hash and keep the last 1 percent (at least one) for validation."""
    documents, report, files = collect(options)
    for label, n, size in report:
        print(f"{label}: {n:,} documents, {size / 1e6:.2f} MB")
    if len(documents) < 2:
        raise InputError("one document only: at least two are needed, one to train on and one to validate with")
    order = sorted(range(len(documents)), key=lambda i: unit_hash(options.seed, "shuffle", str(i)))
    encoded = iter(tokenizer.encode([words for i in order for _, words in documents[i].turns]))
    bos = np.array([tokenizer.bos_id] if tokenizer.bos_id >= 0 else [], dtype=np.int32)
    sequences = []
    for i in order:
        turns = [(own, next(encoded), True) for own, _ in documents[i].turns]
        ids = np.concatenate([bos, turns[0][1]]) if turns[0][0] is None else chat.assemble(turns)[0]
        if len(ids) < 2:
            continue
        mask = np.ones(len(ids), dtype=np.uint8)
        mask[0] = 0
        sequences.append(Sequence(ids, mask, TRAIN))
    for sequence in sequences[-max(1, round(VALID_SHARE * len(sequences))) :]:
        sequence.part = VALID
    return Prepared(
        name="text",
        source=", ".join(file.name for file in files),
        source_sha256=sha256_of_all(files),
        license=options.license,
        recipe={
            "verb": "text",
            "style": chat.style,
            "piece_chars": options.piece_chars,
            "max_megabytes": options.max_megabytes,
            "dialogue": [spec.rsplit("/", 1)[-1] for spec in options.dialogue],
            "quoted": options.quoted,
            "seed": options.seed,
        },
        clients=[Client("text", sequences)],
    )
