"""Token ids and loss masks of batches of own records: each text once through the tokenizer's batch encoding."""

import numpy as np

from hetlora.prepare.chat_format import ChatFormat
from hetlora.prepare.lengths import truncate
from hetlora.prepare.own_records import Record
from hetlora.prepare.templates import RecordTemplate
from hetlora.prepare.tokenizer import TextTokenizer


class RecordEncoder:
    """`whole_text`: a record is one text, all of it trained on; else turns, by the template or the chat format."""

    def __init__(self, tokenizer: TextTokenizer, chat: ChatFormat, template: RecordTemplate | None, whole_text: bool):
        self._tokenizer, self._chat, self._template, self._whole_text = tokenizer, chat, template, whole_text
        self._bos = np.array([tokenizer.bos_id] if tokenizer.bos_id >= 0 else [], dtype=np.int32)
        self._eos = np.array([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [], dtype=np.int32)
        self._markup: dict[str, np.ndarray] = {}

    def encode(self, records: list[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [n], mask uint8 [n]) of each record."""
        if self._template is not None:
            return self._by_template(records)
        ids = self._ids_of({words: None for record in records for _, words in record.turns})
        return [self._by_turns(record.turns, ids) for record in records]

    def truncate(self, ids: np.ndarray, mask: np.ndarray, limit: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        """At most `limit` tokens of a sequence (lengths.truncate)."""
        return truncate(ids, mask, limit, side)

    def _ids_of(self, texts: dict[str, None]) -> dict[str, np.ndarray]:
        return dict(zip(texts, self._tokenizer.encode(list(texts)), strict=True))

    def _by_turns(self, turns: list[tuple[str, str]], ids: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self._whole_text:
            tokens = np.concatenate([self._bos, ids[turns[0][1]], self._eos])
            mask = np.ones(len(tokens), dtype=np.uint8)
            mask[:1] = 0
            return tokens, mask
        system = ids[turns[0][1]] if turns[0][0] == "system" else None
        spoken = [(role == "assistant", ids[words], True) for role, words in turns if role != "system"]
        return self._chat.assemble(spoken, system)

    def _by_template(self, records: list[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
        written = [self._template.stretches(record.values) for record in records]
        ids = self._ids_of({piece.text: None for pieces in written for piece in pieces if piece.own_words})
        result = []
        for pieces in written:
            parts, flags = [self._bos], [0]
            for piece in pieces:
                parts.append(ids[piece.text] if piece.own_words else self._markup_ids(piece.text))
                flags.append(int(piece.loss))
                if piece.loss and len(self._eos):
                    parts.append(self._eos)
                    flags.append(1)
                    break  # what a template writes behind the response is never reached
            tokens = np.concatenate(parts)
            mask = np.repeat(np.array(flags, dtype=np.uint8), [len(part) for part in parts])
            mask[:1] = 0
            result.append((tokens, mask))
        return result

    def _markup_ids(self, text: str) -> np.ndarray:
        """The template's own words are the same in every record."""
        if text not in self._markup:
            self._markup[text] = np.array(self._tokenizer.encode_markup(text), dtype=np.int32)
        return self._markup[text]
