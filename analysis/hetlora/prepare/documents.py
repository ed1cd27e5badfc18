"""Text files and speeches as documents for pretraining: pieces of running text and two-person conversations."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hetlora.errors import InputError, UsageError
from hetlora.files import existing_file, plain_suffix, read_text
from hetlora.prepare.records import BadLine, name_field, read_records, text_field
from hetlora.prepare.splits import unit_hash

QUOTED = re.compile(r'"([^"]+)"')
# British single quotes: opened at a word's start, closed after punctuation, so that "don't" is no quote.
SINGLE_QUOTED = re.compile(r"(?<!\w)'(?=\w)(.+?[,.!?;-])'(?!\w)")
LONGEST_QUOTE = 600  # characters: longer speech is a story told, not a turn of a conversation


@dataclass
class Document:
    """Running text (one turn, `own` is None) or a conversation; turns are (own, words)."""

    turns: list[tuple[bool | None, str]]

    def n_bytes(self) -> int:
        """Size of the words in UTF-8."""
        return sum(len(words.encode("utf-8")) for _, words in self.turns)


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, without the line breaks of text that is wrapped at a fixed width (Project Gutenberg style).

    In wrapped text a blank line ends a paragraph. Where a file has lost its blank lines, a paragraph ends at a line
    that ends a sentence although the next line's first word had fitted on it.
    """
    text = text.replace("\u201c", '"').replace("\u201d", '"').replace("\u2018", "'").replace("\u2019", "'")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    filled = [line for line in lines if line]
    if sum(55 <= len(line) <= 80 for line in filled) <= 0.5 * len(filled):
        return filled
    width = sorted(map(len, filled))[int(0.95 * (len(filled) - 1))]
    lost_blanks = len(lines) - len(filled) < 0.02 * len(filled)
    result, current = [], []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line:
            current.append(line)
        fits = len(line) + 1 + len(following.split(" ", 1)[0]) <= width
        sentence_ends = line.rstrip("\"')").endswith((".", "!", "?", "-", ":"))
        if current and (not following or not line or (lost_blanks and fits and sentence_ends)):
            result.append(" ".join(current))
            current = []
    return result


def pieces(parts: list[str], longest: int) -> list[str]:
    """Join neighbouring paragraphs (by a newline) to pieces of at most `longest` characters; longer ones are cut."""
    result, current = [], ""
    for part in parts:
        while len(part) > longest:
            cut = part.rfind(" ", longest // 2, longest)
            cut = cut if cut > 0 else longest
            if current:
                result.append(current)
                current = ""
            result.append(part[:cut])
            part = part[cut:].lstrip()
        if current and len(current) + 1 + len(part) > longest:
            result.append(current)
            current = ""
        current = f"{current}\n{part}" if current else part
    return [piece for piece in [*result, current] if piece]


def conversation(speeches: list[tuple[str, str]]) -> Document:
    """A two-person conversation of (speaker, words): the busiest speaker is "me", all others are the other side."""
    counts = Counter(speaker for speaker, _ in speeches)
    me = max(counts, key=lambda speaker: (counts[speaker], -[s for s, _ in speeches].index(speaker)))
    turns: list[tuple[bool | None, str]] = []
    for speaker, words in speeches:
        own = speaker == me
        if turns and turns[-1][0] == own:
            turns[-1] = (own, turns[-1][1] + "\n" + words)
        else:
            turns.append((own, words))
    return Document(turns)


def cut_speeches(speeches: list[tuple[str, str]], longest: int) -> list[Document]:
    """Conversations of at most about `longest` characters from one scene's speeches in order."""
    result, current, size = [], [], 0
    for speech in speeches:
        if current and size + len(speech[1]) > longest:
            result.append(conversation(current))
            current, size = [], 0
        current.append(speech)
        size += len(speech[1])
    return result + ([conversation(current)] if current else [])


def quoted_conversations(parts: list[str], longest: int) -> list[Document]:
    """Conversations from quoted speech: neighbouring paragraphs with "..." are taken as turns of two people.

    The narration between the quotes is dropped; a paragraph without quotes or with a long speech ends a conversation;
    fewer than three turns are not one. The second to speak is "me".
    """
    result, current = [], []

    def close() -> None:
        if len(current) >= 3:
            result.append(Document([(i % 2 == 1, words) for i, words in enumerate(current)]))
        current.clear()

    single = sum(part.startswith("'") for part in parts) > sum(part.startswith('"') for part in parts)
    quote_pattern = SINGLE_QUOTED if single else QUOTED
    for part in parts:
        words = " ".join(quote.strip() for quote in quote_pattern.findall(part)).strip()
        if words.endswith(","):
            words = words[:-1] + "."  # `"I see," said he.`: the comma belongs to the narration
        if not words or len(words) > LONGEST_QUOTE or (not single and part.count('"') % 2):
            close()
            continue
        if current and sum(map(len, current)) + len(words) > longest:
            close()
        current.append(words)
    close()
    return result


def texts_of(path: str, text_field_name: str, skip_bad: bool) -> list[str]:
    """The texts in one file: a .txt is one, a .jsonl one per line."""
    file = existing_file(path, "a text file")
    suffix = plain_suffix(file)
    if suffix == ".txt":
        return [read_text(file)]
    if suffix == ".jsonl":
        return list(read_records(path, "texts", lambda record: text_field(record, text_field_name), skip_bad))
    raise InputError(f"{file} ends in {suffix or 'nothing'}; .txt and .jsonl (each may end in .xz) are read")


def parse_dialogue(spec: str) -> tuple[str, str, list[str]]:
    """(file, speaker field, group fields) of FILE:SPEAKER_FIELD:GROUP_FIELD[,...]."""
    parts = spec.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise UsageError(f"--dialogue {spec}: FILE:SPEAKER_FIELD:GROUP_FIELD[,GROUP_FIELD...] was expected")
    return parts[0], parts[1], parts[2].split(",")


def speeches_of(spec: str, text_field_name: str, skip_bad: bool) -> list[list[tuple[str, str]]]:
    """Scenes (neighbouring lines with equal group fields), each a list of (speaker, words)."""
    path, speaker, groups = parse_dialogue(spec)

    def pick(record: dict) -> tuple[tuple[str, ...], str, str]:
        missing = [g for g in groups if g not in record]
        if missing:
            raise BadLine(f"no field {missing[0]!r} (fields here: {', '.join(sorted(record))})")
        return tuple(str(record[g]) for g in groups), name_field(record, speaker), text_field(record, text_field_name)

    scenes: list[list[tuple[str, str]]] = []
    last = None
    for group, who, words in read_records(path, "speeches", pick, skip_bad):
        if group != last:
            scenes.append([])
            last = group
        scenes[-1].append((who, words))
    return scenes


def limited(documents: list[Document], max_megabytes: float | None, seed: int, purpose: str) -> list[Document]:
    """At most `max_megabytes` (10^6 bytes) of documents, chosen by hash of their position and kept in order."""
    if max_megabytes is None:
        return documents
    order = sorted(range(len(documents)), key=lambda i: unit_hash(seed, purpose, str(i)))
    kept, size = set(), 0
    for i in order:
        size += documents[i].n_bytes()
        if size > max_megabytes * 1e6:
            break
        kept.add(i)
    return [document for i, document in enumerate(documents) if i in kept]


def collect(options) -> tuple[list[Document], list[tuple[str, int, int]], list[Path]]:
    """(documents of all inputs, [(input, documents, bytes)], files read) from the options of `text`/`tokenizer`."""
    documents: list[Document] = []
    report = []
    files = []
    longest = max(200, options.piece_chars)

    def add(label: str, found: list[Document]) -> None:
        found = limited(found, options.max_megabytes, options.seed, f"pieces-{label}")
        documents.extend(found)
        report.append((label, len(found), sum(document.n_bytes() for document in found)))

    for path in options.files:
        files.append(existing_file(path, "a text file"))
        split = [paragraphs(text) for text in texts_of(path, options.text_field, options.skip_bad)]
        name = Path(path).name
        add(name, [Document([(None, piece)]) for parts in split for piece in pieces(parts, longest)])
        if options.quoted:
            add(f"{name} (quoted speech)", [doc for parts in split for doc in quoted_conversations(parts, longest)])
    for spec in options.dialogue:
        path = parse_dialogue(spec)[0]
        files.append(existing_file(path, "a file of speeches"))
        scenes = speeches_of(spec, options.text_field, options.skip_bad)
        add(f"{Path(path).name} (speeches)", [doc for scene in scenes for doc in cut_speeches(scene, longest)])
    if not documents:
        raise InputError("the input files hold no text; nothing to prepare")
    return documents, report, files
