"""A tokenizer folder (tokenizer.json and its config) as this package uses it: encoding, special ids, raw bytes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetlora.errors import InputError, need
from hetlora.files import existing_file, sha256_of

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BATCH = 20_000  # texts per call of the tokenizers library: keeps the memory for intermediate results small


@dataclass
class TextTokenizer:
    """A loaded tokenizer. The ids of special tokens are -1 where the tokenizer names none."""

    raw: object
    name: str
    sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int
    chat_template: str | None
    special: dict[str, int]
    sep_id: int = -1
    pad_id: int = -1

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids of each text as plain text: special tokens spelled out in a text stay ordinary characters."""
        self.raw.encode_special_tokens = True
        result = []
        for start in range(0, len(texts), BATCH):
            batch = self.raw.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
            result += [np.asarray(encoding.ids, dtype=np.int32) for encoding in batch]
        return result

    def encode_markup(self, text: str) -> list[int]:
        """Ids of a piece of a chat template, in which special tokens are meant as such."""
        self.raw.encode_special_tokens = False
        return list(self.raw.encode(text, add_special_tokens=False).ids) if text else []

    def around_one_text(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids that the tokenizer's post-processor puts before and behind one text (both may be empty)."""
        inside = self.raw.encode("a", add_special_tokens=False).ids
        encoding = self.raw.encode("a", add_special_tokens=True)
        ids, added = np.asarray(encoding.ids, dtype=np.int32), np.asarray(encoding.special_tokens_mask)
        text = np.flatnonzero(added == 0)
        begin, end = (int(text[0]), int(text[-1]) + 1) if len(text) else (len(ids), len(ids))
        if ids[begin:end].tolist() != inside:
            raise InputError(
                f"the tokenizer {self.name} changes a text by more than special tokens before and behind it; "
                "mend the post_processor in its tokenizer.json"
            )
        return ids[:begin], ids[end:]

    def vocabulary(self) -> list[bytes]:
        """Raw bytes of every token by id (empty for ids that no token has)."""
        spec = json.loads(self.raw.to_str())
        byte_level = _mentions(spec.get("pre_tokenizer"), "ByteLevel") or _mentions(spec.get("decoder"), "ByteLevel")
        # Added tokens are matched in the text before byte-level mapping, so their content is literal.
        literal = {entry["content"] for entry in spec.get("added_tokens", [])}
        table = _unicode_to_byte()
        inner = spec["model"].get("continuing_subword_prefix") if spec["model"].get("type") == "WordPiece" else None
        tokens = [b""] * self.vocab_size
        for token, index in self.raw.get_vocab(with_added_tokens=True).items():
            if token in literal:
                tokens[index] = token.encode("utf-8")
            elif byte_level and all(character in table for character in token):
                tokens[index] = bytes(table[character] for character in token)
            elif match := BYTE_PIECE.fullmatch(token):
                tokens[index] = bytes([int(match.group(1), 16)])
            elif inner:  # pieces of a word carry a prefix, words stand for themselves
                tokens[index] = (token.removeprefix(inner) if token.startswith(inner) else f" {token}").encode("utf-8")
            else:
                tokens[index] = token.replace("▁", " ").encode("utf-8")
        return tokens


def _mentions(node: object, kind: str) -> bool:
    if isinstance(node, dict):
        return node.get("type") == kind or any(_mentions(value, kind) for value in node.values())
    return isinstance(node, list) and any(_mentions(value, kind) for value in node)


def _unicode_to_byte() -> dict[str, int]:
    """Inverse of the byte-level alphabet: printable bytes stand for themselves, the rest for 256, 257, ... in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def load_tokenizer(folder: str) -> TextTokenizer:
    """Load a folder with tokenizer.json (and tokenizer_config.json, chat_template.jinja, config.json if there)."""
    tokenizers = need("tokenizers", "data")
    path = Path(folder).expanduser()
    if path.is_file():
        raise InputError(
            f"{path} is a file (--tokenizer wants a folder with tokenizer.json); of a GGUF file make one with "
            f"`hetlora convert gguf {path} --to DIR`"
        )
    if not path.is_dir():
        raise InputError(f"no such folder: {path} (--tokenizer wants a folder with tokenizer.json); check the path")
    if (path / "vocab.txt").is_file() and not (path / "tokenizer.json").is_file():
        raise InputError(
            f'{path} has vocab.txt but no tokenizer.json; make it with: python -c "from transformers import '
            f"BertTokenizerFast as T; T.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    file = existing_file(path / "tokenizer.json", "the tokenizer")
    try:
        raw = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{file} is not a tokenizer: {error}") from error
    raw.no_truncation()
    raw.no_padding()
    config = _json(path / "tokenizer_config.json")
    model = _json(path / "config.json")

    def special_id(kind: str) -> int:
        token = config.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            index = raw.token_to_id(token)
            if index is None:
                raise InputError(f"{path}: tokenizer_config.json names {kind}_token {token!r}, which has no id")
            return index
        index = model.get(f"{kind}_token_id")
        return index if isinstance(index, int) else -1

    def optional_id(kind: str) -> int:
        token = config.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        index = raw.token_to_id(token) if isinstance(token, str) else None
        return -1 if index is None else index

    template = config.get("chat_template")
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text()
    vocab = raw.get_vocab(with_added_tokens=True)
    return TextTokenizer(
        raw=raw,
        name=path.resolve().name,
        sha256=sha256_of(file),
        vocab_size=max(vocab.values()) + 1,
        bos_id=special_id("bos"),
        eos_id=special_id("eos"),
        chat_template=template if isinstance(template, str) else None,
        special={token.content: index for index, token in raw.get_added_tokens_decoder().items() if token.special},
        sep_id=optional_id("sep"),
        pad_id=optional_id("pad"),
    )


def check_model(folder: str | None, tokenizer: TextTokenizer) -> None:
    """InputError unless the tokenizer is the one of the model in `folder` (None: nothing to check)."""
    if folder is None:
        return
    path = Path(folder).expanduser()
    config = _json(existing_file(path / "config.json", "the model's configuration"))
    vocab_size = config.get("vocab_size")
    if isinstance(vocab_size, int) and tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but the model in {path} only "
            f"{vocab_size}: they do not belong together; give the model's own folder alone, with --model"
        )
    own = path / "tokenizer.json"
    if own.is_file() and sha256_of(own) != tokenizer.sha256:
        raise InputError(
            f"the tokenizer {tokenizer.name} is another one than {own}, which belongs to the model: a run would refuse "
            "the data; leave out --tokenizer"
        )


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}
