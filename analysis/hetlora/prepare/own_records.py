"""One record of own data: its fields picked and checked, whatever file it comes from."""

from dataclasses import dataclass, field

from hetlora.prepare.records import BadLine, name_field, text_field
from hetlora.prepare.splits import TEST, TRAIN, VALID

EVERYBODY = "(all)"
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "bot": "assistant",
}  # fmt: skip
PARTS = {"train": TRAIN, "training": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "dev": VALID,
         "eval": VALID, "test": TEST, "testing": TEST}  # fmt: skip


@dataclass
class Record:
    """`turns` are (role, words) of messages, `values` what a template may use; a text has one turn of the assistant."""

    where: str
    client: str
    label: str | None = None
    group: str | None = None
    part: int | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    answer: int = -1

    @property
    def content(self) -> str:
        """All that makes two records duplicates of each other."""
        return "\0".join(f"{role}\1{words}" for role, words in self.turns)


def picker(options, words: dict[str, str] | None):
    """A function (record, where) -> Record for `read_table`; raises BadLine. `words`: label -> response, or None."""
    label_is_response = options.prompt_field is not None and options.response_field is None
    classified = options.task == "classification"
    all_fields = options.template not in (None, "chat", "alpaca", "plain")

    def pick(raw: dict, where: str) -> Record:
        client = EVERYBODY if options.client_field is None else name_field(raw, options.client_field)
        found = Record(where, client)
        if options.label_field is not None:
            found.label = name_field(raw, options.label_field)
            if words is not None and found.label not in words:
                raise BadLine(f"label {found.label!r} has no word in --label-words ({', '.join(words)})")
        if options.group_field is not None:
            found.group = name_field(raw, options.group_field)
        if options.split_field is not None:
            found.part = part_of(name_field(raw, options.split_field), options.split_field)
        if options.text_field is not None:
            found.turns = [("assistant", text_field(raw, options.text_field))]
            return found
        if options.messages_field is not None:
            found.turns = messages(raw, options.messages_field)
            return found
        prompt = text_field(raw, options.prompt_field)
        context = optional_text(raw, options.context_field)
        if options.choices_field is not None:
            found.choices, found.answer = own_choices(raw, options.choices_field, options.answer_field)
            response = found.choices[found.answer]
        elif not label_is_response:
            response = text_field(raw, options.response_field)
        else:
            response = found.label if words is None else words[found.label]
        asked = f"{prompt}\n\n{context}" if context else prompt
        # The text of a classification must not show the label, nor may equal texts with two labels count as different.
        found.turns = [("user", asked)] if classified else [("user", asked), ("assistant", response)]
        if all_fields:
            hidden = options.label_field if classified else None
            found.values = {key: as_text(value) for key, value in raw.items() if isinstance(key, str) and key != hidden}
        found.values |= {"prompt": prompt, "context": context, "response": response}
        return found

    return pick


def part_of(name: str, field_name: str) -> int:
    """TRAIN, VALID or TEST for the name of a split, or BadLine."""
    part = PARTS.get(name.strip().lower())
    if part is None:
        raise BadLine(f"field {field_name!r} is {name!r}, which is none of {', '.join(PARTS)}")
    return part


def own_choices(raw: dict, choices_field: str, answer_field: str) -> tuple[list[str], int]:
    """The answers of a record and the place of the right one, or BadLine."""
    choices = raw.get(choices_field)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
        raise BadLine(f"field {choices_field!r} is no list of two or more texts")
    choices = [one.strip() for one in choices]
    if not all(choices) or len(set(choices)) < len(choices):
        raise BadLine(f"field {choices_field!r} has a blank answer, or one twice")
    answer = raw.get(answer_field)
    if isinstance(answer, str):
        if answer.strip() in choices:
            return choices, choices.index(answer.strip())
        answer = int(answer) if answer.strip().isdecimal() else answer
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadLine(f"field {answer_field!r} is {answer!r}, which is neither one of the answers nor its place from 0")
    return choices, answer


def optional_text(raw: dict, field_name: str | None) -> str:
    """The text of a field that may be missing or blank; BadLine for what is no text."""
    if field_name is None or raw.get(field_name) in (None, ""):
        return ""
    if isinstance(raw[field_name], str) and not raw[field_name].strip():
        return ""
    return text_field(raw, field_name)


def as_text(value: object) -> str:
    """A value as a template sees it; lists and objects have no text."""
    if isinstance(value, str):
        return value.strip()
    return "" if value is None or isinstance(value, (list, dict)) else str(value)


def messages(raw: dict, field_name: str) -> list[tuple[str, str]]:
    """(role, words) of a conversation: {role, content} or {from, value}; neighbours of one role are joined."""
    value = raw.get(field_name)
    if not isinstance(value, list):
        kind = "missing" if field_name not in raw else type(value).__name__
        raise BadLine(f"field {field_name!r} is {kind}, a list of {{role, content}} was expected")
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise BadLine(f"message {number} is {type(message).__name__}, an object was expected")
        keys = ("from", "value") if "from" in message else ("role", "content")
        name, words = message.get(keys[0]), message.get(keys[1])
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise BadLine(f"message {number} has the role {name!r}, which is none of {', '.join(ROLES)}")
        if not isinstance(words, str):
            raise BadLine(f"message {number} has no text in {keys[1]!r}")
        words = words.strip()
        if role == "system" and turns:
            raise BadLine(f"message {number} is a system text after the start of the conversation")
        if not words:
            continue
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n{words}")
        else:
            turns.append((role, words))
    if not any(role == "assistant" for role, _ in turns):
        raise BadLine("no turn of the assistant: nothing would be trained on")
    return turns
