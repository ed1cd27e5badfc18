"""`prepare msc`: Multi-Session Chat, sessions 1-3, the HetLoRA paper's chat task; a client is a speaker of an episode.

One line is an episode: {"episode", "sessions": [{"personas": [[..],[..]], "turns": [..], "speaker": [0/1 ..]}]}.
"""

from pathlib import Path

import numpy as np

from hetlora.errors import InputError
from hetlora.files import sha256_of
from hetlora.prepare import splits
from hetlora.prepare.chat_format import ChatFormat
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.records import BadLine, read_records
from hetlora.prepare.tokenizer import TextTokenizer

LICENSE = "not stated by the source (ParlAI MSC); for local use"
TRAIN_SESSIONS = 2


def pick_episode(record: dict) -> dict:
    """The episode with its fields checked, or BadLine."""
    sessions = record.get("sessions")
    if not isinstance(record.get("episode"), str) or not record["episode"]:
        raise BadLine("no text field 'episode'")
    if not isinstance(sessions, list) or not sessions:
        raise BadLine("'sessions' is not a list of sessions")
    for number, session in enumerate(sessions, start=1):
        where = f"session {number}"
        if not isinstance(session, dict):
            raise BadLine(f"{where} is not an object")
        personas, turns, speakers = (session.get(key) for key in ("personas", "turns", "speaker"))
        if not isinstance(personas, list) or len(personas) != 2 or not all(_texts(persona) for persona in personas):
            raise BadLine(f"{where}: 'personas' is not two lists of sentences")
        if not _texts(turns) or not turns:
            raise BadLine(f"{where}: 'turns' is not a list of texts")
        if not isinstance(speakers, list) or len(speakers) != len(turns) or not all(s in (0, 1) for s in speakers):
            raise BadLine(f"{where}: 'speaker' is not a 0 or 1 for each of the {len(turns)} turns")
    return record


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def session_turns(session: dict) -> list[tuple[int, str]]:
    """(speaker, words) with blank turns gone and neighbours of one speaker joined by a newline."""
    turns: list[tuple[int, str]] = []
    for speaker, words in zip(session["speaker"], session["turns"], strict=True):
        words = words.strip()
        if words and turns and turns[-1][0] == speaker:
            turns[-1] = (speaker, turns[-1][1] + "\n" + words)
        elif words:
            turns.append((speaker, words))
    return turns


def counting_turns(turns: list[tuple[int, str]], speaker: int, half: str) -> list[bool]:
    """Which turns are loss: all own ones, or the earlier or later half of them ('all', 'first', 'second')."""
    own = [i for i, (who, _) in enumerate(turns) if who == speaker]
    cut = (len(own) + 1) // 2
    chosen = {"all": own, "first": own[:cut], "second": own[cut:]}[half]
    return [i in chosen for i in range(len(turns))]


def plan(held: int, n_sessions: int) -> list[tuple[int, int, str]]:
    """(session index, part, which own turns count) of one speaker.

    A held-out episode is all valid or all test. Others train on sessions 1-2; of session 3 the first half of the own
    turns is valid, the second half (with the first as context) test.
    """
    if held != splits.TRAIN:
        return [(i, held, "all") for i in range(n_sessions)]
    train = [(i, splits.TRAIN, "all") for i in range(min(TRAIN_SESSIONS, n_sessions))]
    later = range(TRAIN_SESSIONS, n_sessions)
    return train + [(i, splits.VALID, "first") for i in later] + [(i, splits.TEST, "second") for i in later]


def prepare_msc(options, tokenizer: TextTokenizer, chat: ChatFormat) -> Prepared:
    """Build the clients from parsed command-line options; the own persona is the text before the first turn."""
    episodes = list(read_records(options.input, "MSC episodes", pick_episode, options.skip_bad))
    names = [episode["episode"] for episode in episodes]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{options.input}: episode {twice[0]!r} occurs twice; each must have its own name")
    speakers = [(episode, s) for episode in episodes for s in (0, 1)]
    if options.max_clients:
        speakers.sort(key=lambda pair: splits.unit_hash(options.seed, "max-clients", f"{pair[0]['episode']}:{pair[1]}"))
        speakers = speakers[: options.max_clients]
    speakers.sort(key=lambda pair: (names.index(pair[0]["episode"]), pair[1]))
    texts, ids = {}, {}
    for episode, _ in speakers:
        for session in episode["sessions"]:
            for text in [words for _, words in session_turns(session)] + [_persona(p) for p in session["personas"]]:
                texts.setdefault(text, None)
    for text, encoded in zip(texts, tokenizer.encode(list(texts)), strict=True):
        ids[text] = encoded
    clients = []
    for episode, speaker in speakers:
        held = splits.held_out_part(episode["episode"], options.held_out_fraction, options.seed)
        sequences = [
            sequence
            for index, part, half in plan(held, len(episode["sessions"]))
            if (sequence := _sequence(episode["sessions"][index], speaker, half, part, chat, ids)) is not None
        ]
        if sequences:
            clients.append(Client(f"{episode['episode']}:{speaker}", sequences, held != splits.TRAIN))
    return Prepared(
        name="msc",
        source=Path(options.input).name,
        source_sha256=sha256_of(Path(options.input).expanduser()),
        license=LICENSE,
        recipe={
            "verb": "msc",
            "style": chat.style,
            "default_system": options.default_system,
            "held_out_fraction": options.held_out_fraction,
            "max_clients": options.max_clients,
            "seed": options.seed,
        },
        clients=clients,
    )


def _persona(sentences: list[str]) -> str:
    return " ".join(sentence.strip() for sentence in sentences)


def _sequence(
    session: dict, speaker: int, half: str, part: int, chat: ChatFormat, ids: dict[str, np.ndarray]
) -> Sequence | None:
    turns = session_turns(session)
    counts = counting_turns(turns, speaker, half)
    if not any(counts):
        return None
    if half == "first":  # what follows belongs to the test part and is not even context here
        last = max(i for i, flag in enumerate(counts) if flag)
        turns, counts = turns[: last + 1], counts[: last + 1]
    tokens, mask = chat.assemble(
        ((who == speaker, ids[words], flag) for (who, words), flag in zip(turns, counts, strict=True)),
        system=ids[_persona(session["personas"][speaker])],
    )
    return Sequence(tokens, mask, part)
