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


def check_label_alike(record: Record, encoded: Encoded, known: np.ndarray | None) -> np.ndarray:
    """The tokens of a record's reply. InputError if they are not those `known` of its label."""
    _, reply = reply_of(record, encoded)
    if known is not None and not np.array_equal(reply, known):
        raise unlike(record.label, record.where)
    return reply


def unlike(label: str, where: str) -> InputError:
    """The error of a label whose reply is not everywhere the same."""
    return InputError(
        f"{where}: the label {label!r} is not written with the same tokens as elsewhere, so that one list of answers "
        "cannot serve all records; leave --label-choices out, or mend the template"
    )
