"""The tokenizer file of llama2.c (scores and byte strings) as a tokenizer.json with the same encoding.

llama2.c prefixes a space, splits into characters (bytes <0xNN> where a character is unknown) and then merges again and
again the adjacent pair whose joined piece has the best score. That is byte-pair encoding whose merges are all splits of
every piece into two pieces, ordered by the score of the result, which the `tokenizers` library runs.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from hetlora.errors import InputError

SPACE = "▁"  # how sentencepiece-like vocabularies write a space
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"


@dataclass
class Llama2cVocabulary:
    """`pieces[id]` = the text of a token with spaces as spaces (<0xNN> for byte tokens), `scores[id]` its score."""

    pieces: list[str]
    scores: list[float]

    def as_vocab(self) -> dict[str, int]:
        """Piece -> id with U+2581 for spaces, in id order; the three special tokens by their usual names."""
        return {piece.replace(" ", SPACE): index for index, piece in enumerate(self.pieces)}

    def merges(self) -> list[tuple[str, str]]:
        """All (left, right) with left, right and left+right in the vocabulary, best score of the result first."""
        vocab = self.as_vocab()
        ranked = []
        for piece, index in vocab.items():
            if index < 3 or BYTE_PIECE.fullmatch(piece):
                continue
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in vocab and right in vocab:
                    ranked.append((-self.scores[index], index, cut, (left, right)))
        return [pair for *_, pair in sorted(ranked)]


def read_llama2c_tokenizer(path: Path) -> Llama2cVocabulary:
    """Parse int32 max_len, then (float32 score, int32 length, bytes) per token until the end of the file."""
    data = path.read_bytes()
    pieces, scores, at = [], [], 4
    while at < len(data):
        if at + 8 > len(data):
            raise InputError(f"{path} ends inside token {len(pieces)} (byte {at}); is the file complete?")
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 <= length <= 4096 or at + 8 + length > len(data):
            raise InputError(f"{path}: token {len(pieces)} at byte {at} has length {length}; not a llama2.c tokenizer?")
        raw = data[at + 8 : at + 8 + length]
        try:
            pieces.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: token {len(pieces)} is not UTF-8 ({raw!r}); not a llama2.c tokenizer?"
            ) from error
        scores.append(score)
        at += 8 + length
    if len(pieces) < 4:
        raise InputError(f"{path} holds {len(pieces)} tokens; not a llama2.c tokenizer?")
    pieces[:3] = [UNKNOWN, BOS, EOS]  # stored as "\n<s>\n" so that run.c prints them on lines of their own
    repeated = sorted({piece for piece in pieces if pieces.count(piece) > 1}) if len(pieces) < 5000 else []
    if repeated or len(set(pieces)) != len(pieces):
        raise InputError(f"{path}: tokens occur twice ({repeated[:5]}), so ids would be ambiguous")
    return Llama2cVocabulary(pieces, scores)


def tokenizer_folder_files(vocabulary: Llama2cVocabulary, max_length: int) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json (BOS is added in front, as run.c does)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = models.BPE(
        vocab=vocabulary.as_vocab(), merges=vocabulary.merges(), unk_token=UNKNOWN, fuse_unk=False, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNKNOWN, BOS, EOS)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
