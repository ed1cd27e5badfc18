"""The answers that a model may choose among, as tokens: exactly what the same reply would be in training."""

import dataclasses

import numpy as np

from hetlora.errors import InputError
from hetlora.prepare.data_file import prompt_length
from hetlora.prepare.own_records import Record

Encoded = tuple[np.ndarray, np.ndarray]


def with_response(record: Record, response: str) -> Record:
    """The record as if this had been its answer."""
    turns = [*record.turns[:-1], ("assistant", response)]
    return dataclasses.replace(record, turns=turns, values=record.values | {"response": response})


def reply_of(record: Record, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """(ids before the last reply, ids of the reply) of an encoded record. InputError for a reply without a token."""
    ids, mask = encoded
    start = prompt_length(mask)
    reply = ids[start:][mask[start:] == 1]
    if not len(reply):
        raise InputError(f"{record.where}: an answer has no token; give it words that the tokenizer knows")
    return ids[:start], reply


def replies(record: Record, responses: list[str], encode) -> list[np.ndarray]:
    """The tokens of each response to a record; `encode(records)` gives their (ids, mask) before any truncation.

    InputError where what stands before the reply depends on it: then the likelihoods would not compare.
    """
    found = []
    first = None
    for response, encoded in zip(
        responses, encode([with_response(record, response) for response in responses]), strict=True
    ):
        prompt, reply = reply_of(record, encoded)
        if first is not None and not np.array_equal(prompt, first):
            raise InputError(
                f"{record.where}: the template writes another prompt before {response!r} than before "
                f"{responses[0]!r}; what stands before the response must not depend on it"
            )
        first = prompt
        found.append(reply)
    return found


def check_labels_alike(records: list[Record], encoded: list[Encoded], words: list[np.ndarray], label_id: dict) -> None:
    """InputError if the reply of a record is not its label's answer, token for token."""
    for record, pair in zip(records, encoded, strict=True):
        _, reply = reply_of(record, pair)
        if not np.array_equal(reply, words[label_id[record.label]]):
            raise InputError(
                f"{record.where}: the label {record.label!r} is not written with the same tokens as elsewhere, so that "
                "one list of answers cannot serve all records; leave --label-choices out, or mend the template"
            )
