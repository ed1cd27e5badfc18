"""`--task classification`: a record is its text and one more token, in whose place a run predicts the label.

A sequence is OPENING text CLOSING end. OPENING and CLOSING are the special tokens that the tokenizer's own
post-processor puts around one text ([CLS] and [SEP] of BERT, BOS of Llama, nothing of GPT-2). The end carries the only
loss; a run reads the label in its place, so which token it is does not matter.
"""

import numpy as np

from hetlora.errors import InputError, UsageError
from hetlora.prepare.lengths import truncate_text
from hetlora.prepare.own_index import RecordIndex
from hetlora.prepare.own_records import Record
from hetlora.prepare.own_splits import Placed
from hetlora.prepare.splits import TRAIN
from hetlora.prepare.templates import RecordTemplate, load_template
from hetlora.prepare.tokenizer import TextTokenizer

SHOWN_LABELS = 20  # in the printed statistics


def check_classification(options) -> None:
    """UsageError unless the fields say one text and a label, and the other options have a meaning."""
    if options.label_field is None:
        raise UsageError(
            "--task classification without a label: name the field that holds each record's class with --label-field"
        )
    if (options.text_field is None) == (options.prompt_field is None):
        raise UsageError("--task classification: give the text with either --text-field or --prompt-field")
    for name in ("response", "messages", "choices", "answer"):
        if getattr(options, f"{name}_field") is not None:
            raise UsageError(f"--task classification with --{name}-field: nothing is written, leave it out")
    if options.text_field is not None and (options.context_field is not None or options.template is not None):
        raise UsageError("--context-field and --template are for --prompt-field; --text-field is the whole text")
    if options.template == "chat":
        raise UsageError("--task classification with --template chat: take plain, alpaca or a file of your own")
    if options.label_choices:
        raise UsageError("--label-choices is for answers in words; a classification has its labels anyway")


def text_template(options) -> RecordTemplate | None:
    """The template whose prompt side is the text (default plain); None with --text-field."""
    return None if options.text_field is not None else load_template(options.template or "plain", response=False)


class ClassificationEncoder:
    """Token ids and masks of records, as RecordEncoder gives them. `template` None: the record's only turn is its text.

    InputError if the tokenizer adds more than an opening and a closing around one text.
    """

    def __init__(self, tokenizer: TextTokenizer, template: RecordTemplate | None):
        self._tokenizer, self._template = tokenizer, template
        self._opening, self._closing = tokenizer.around_one_text()
        self._end = next((i for i in (tokenizer.eos_id, tokenizer.sep_id, tokenizer.pad_id) if i >= 0), -1)

    @property
    def overhead(self) -> int:
        """Tokens of a sequence that are not text."""
        return len(self._opening) + len(self._closing) + 1

    def check_room(self, max_length: int | None) -> None:
        """UsageError for a --max-length without a token of text."""
        if max_length and max_length <= self.overhead:
            raise UsageError(
                f"--max-length {max_length} leaves no room for text: {self.overhead} tokens of every sequence are the "
                f"tokenizer's own and the label's place; give {self.overhead + 1} or more"
            )

    def encode(self, records: list[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [n], mask uint8 [n]) of each record; n >= 2 unless neither text nor special tokens are there."""
        written = [self._pieces(record) for record in records]
        own = {text: None for pieces in written for text, own_words in pieces if own_words}
        ids = dict(zip(own, self._tokenizer.encode(list(own)), strict=True))
        return [
            self._sequence([ids[text] if own else self._markup(text) for text, own in pieces]) for pieces in written
        ]

    def truncate(self, ids: np.ndarray, mask: np.ndarray, limit: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        """At most `limit` tokens: the text is cut, the special tokens and the label's place stay."""
        return truncate_text(ids, mask, limit, side, (len(self._opening), len(self._closing) + 1))

    def _pieces(self, record: Record) -> list[tuple[str, bool]]:
        """(text, whether it is the record's own)."""
        if self._template is None:
            return [(record.turns[0][1], True)]
        return [(piece.text, piece.own_words) for piece in self._template.prompt_side(record.values)]

    def _markup(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode_markup(text), dtype=np.int32)

    def _sequence(self, text: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([self._opening, *text, self._closing])
        end = self._end if self._end >= 0 or not len(ids) else ids[-1]
        ids = np.append(ids, np.int32(max(end, 0)))
        mask = np.zeros(len(ids), dtype=np.uint8)
        mask[-1] = len(ids) > 1
        return ids, mask


def sorted_labels(names: set[str]) -> list[str]:
    """Labels in the order of their ids: whole numbers by value, others by name."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def label_lines(index: RecordIndex, placed: Placed, names: list[str], words: dict[str, str] | None) -> list[str]:
    """What people want to know of the labels. InputError unless two or more are trained on."""
    label = index.column("label")[placed.rows][placed.part == TRAIN]
    counts = np.bincount(label, minlength=len(index.labels.names))
    if np.count_nonzero(counts) < 2:
        raise InputError(
            f"a classification needs two labels or more, and every training record has the label {names[0]!r}; "
            "is --label-field the right one?"
        )
    number = {name: i for i, name in enumerate(index.labels.names)}
    shares = [(words[name] if words else name, counts[number[name]] / len(label)) for name in names[:SHOWN_LABELS]]
    more = f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else ""
    return [f"{len(names)} labels in training: {', '.join(f'{name} {share:.1%}' for name, share in shares)}{more}"]
