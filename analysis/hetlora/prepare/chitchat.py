"""`prepare chitchat`: the open two-person chats of the PyPI package chitchat-dataset; a client is a person."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from hetlora.errors import InputError
from hetlora.files import existing_file, sha256_of
from hetlora.prepare import splits
from hetlora.prepare.chat_format import ChatFormat
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.tokenizer import TextTokenizer

LICENSE = "MIT (chitchat-dataset)"


@dataclass
class Conversation:
    """A two-person conversation: turns (sender, words), neighbours of one sender already joined by a newline."""

    key: str
    start: str
    people: tuple[str, str]
    turns: list[tuple[str, str]]


def find_dataset(path: str | None) -> Path:
    """dataset.json: the given file, or the one of the installed package (found without importing it)."""
    if path:
        return existing_file(path, "the chitchat dataset.json")
    import importlib.util

    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the Python package chitchat-dataset is not installed; install it with: pip install chitchat-dataset "
            "(or give its dataset.json with --input)"
        )
    return existing_file(Path(next(iter(spec.submodule_search_locations))) / "dataset.json", "the chitchat data")


def joined_turns(messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns from (sender, text) messages in time order; blank messages vanish, neighbours of one sender are joined."""
    turns: list[tuple[str, str]] = []
    for sender, text in messages:
        text = text.strip()
        if not text:
            continue
        if turns and turns[-1][0] == sender:
            turns[-1] = (sender, turns[-1][1] + "\n" + text)
        else:
            turns.append((sender, text))
    return turns


def read_conversations(file: Path) -> tuple[list[Conversation], int]:
    """(two-person conversations by start time, number of all conversations)."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        conversations = []
        for key, value in raw.items():
            messages = [m for group in value["messages"] for m in group]
            messages.sort(key=lambda message: message["timestamp"])  # stable; ISO times sort as text
            turns = joined_turns([(m["sender"], m["text"]) for m in messages])
            people = tuple(sorted({sender for sender, _ in turns}))
            if len(people) == 2:
                conversations.append(Conversation(key, messages[0]["timestamp"], people, turns))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not JSON: {error}; is the file complete?") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not the chitchat format ({type(error).__name__}: {error}); expected "
            '{id: {"messages": [[{"text", "timestamp", "sender"}]]}}'
        ) from error
    conversations.sort(key=lambda conversation: (conversation.start, conversation.key))
    return conversations, len(raw)


def assign(
    conversations: list[Conversation], fraction: float, min_words: int, max_clients: int, seed: int
) -> dict[str, list[tuple[Conversation, int]]]:
    """Client name -> its (conversation, part) in time order, by the rules of docs/data.md.

    A person is held out by a hash of the name alone, whatever the other options say. A conversation with a held-out
    person gives sequences to its held-out people only; one of a valid and a test person is used by neither.
    """
    held = {name: splits.held_out_part(name, fraction, seed) for c in conversations for name in c.people}
    own: dict[str, list[Conversation]] = defaultdict(list)
    words: dict[str, int] = defaultdict(int)
    for conversation in conversations:
        parts = {held[name] for name in conversation.people}
        if parts == {splits.VALID, splits.TEST}:
            continue
        for name in conversation.people:
            if held[name] == splits.TRAIN and parts != {splits.TRAIN}:
                continue
            own[name].append(conversation)
            words[name] += sum(len(text.split()) for sender, text in conversation.turns if sender == name)
    names = sorted(name for name in own if words[name] >= min_words)
    if max_clients:
        names.sort(key=lambda name: splits.unit_hash(seed, "max-clients", name))
        names = sorted(names[:max_clients])
    result = {}
    for name in names:
        n = len(own[name])
        parts = splits.time_split(n) if held[name] == splits.TRAIN else [held[name]] * n
        result[name] = list(zip(own[name], parts, strict=True))
    return result


def prepare_chitchat(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Build the clients from parsed command-line options (see `command.py`)."""
    file = find_dataset(options.input)
    conversations, n_all = read_conversations(file)
    if not conversations:
        raise InputError(f"{file}: none of its {n_all} conversations has two people who write")
    chosen = assign(conversations, options.held_out_fraction, options.min_words, options.max_clients, options.seed)
    # Both people's sequences use the same words: every turn is encoded once.
    used = {id(c): c for pairs in chosen.values() for c, _ in pairs}
    encoded = iter(tokenizer.encode([text for c in used.values() for _, text in c.turns]))
    ids = {key: [next(encoded) for _ in conversation.turns] for key, conversation in used.items()}
    clients = []
    for name, pairs in chosen.items():
        sequences = []
        for conversation, part in pairs:
            turns = zip(conversation.turns, ids[id(conversation)], strict=True)
            tokens, mask = chat.assemble((sender == name, words, True) for (sender, _), words in turns)
            sequences.append(Sequence(tokens, mask, part))
        held_out = splits.held_out_part(name, options.held_out_fraction, options.seed) != splits.TRAIN
        clients.append(Client(name, sequences, held_out))
    print(f"{n_all} conversations, {len(conversations)} of two people, {len(used)} used")
    return Prepared(
        name="chitchat",
        source="chitchat-dataset 0.9.0, dataset.json" if options.input is None else str(file.name),
        source_sha256=sha256_of(file),
        license=LICENSE,
        recipe={
            "verb": "chitchat",
            "style": chat.style,
            "default_system": options.default_system,
            "held_out_fraction": options.held_out_fraction,
            "min_words": options.min_words,
            "max_clients": options.max_clients,
            "seed": options.seed,
        },
        clients=clients,
    )
