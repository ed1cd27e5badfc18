"""How the turns of a conversation become token ids and a loss mask.

Three styles: `template` (the tokenizer's own chat template; own turns are the assistant's), `turns` (the special tokens
<|user|>, <|me|>, <|end|>) and `plain` (lines "Other: ..." and "Me: ..." for tokenizers without any turn token). The
words are encoded as plain text and the markup between them as markup, so nobody can write a turn token into a message.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hetlora.errors import InputError, UsageError, need
from hetlora.prepare.tokenizer import TextTokenizer

STYLES = ("auto", "template", "turns", "plain")
BOS, USER, ME, END = "<|bos|>", "<|user|>", "<|me|>", "<|end|>"


@dataclass
class ChatFormat:
    """Token ids around the words of a turn. `own_end` are the ids right after own words that are loss targets too."""

    style: str
    opening: list[int]
    system_before: list[int]
    system_after: list[int]
    other_before: list[int]
    other_after: list[int]
    own_before: list[int]
    own_end: list[int]
    own_after: list[int]

    def assemble(
        self, turns: Iterable[tuple[bool, np.ndarray, bool]], system: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n], mask uint8 [n]) of one conversation.

        `turns` holds (own, ids of the words, counts): only an own turn that counts is masked as loss, with its
        end-of-turn token. `system` are the ids of a text before the first turn (a persona). mask[0] is always 0.
        """
        parts: list = [self.opening]
        flags = [0]
        if system is not None:
            parts += [self.system_before, system, self.system_after]
            flags += [0, 0, 0]
        for own, words, counts in turns:
            if own:
                loss = int(counts)
                parts += [self.own_before, words, self.own_end, self.own_after]
                flags += [0, loss, loss, 0]
            else:
                parts += [self.other_before, words, self.other_after]
                flags += [0, 0, 0]
        ids = np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
        mask = np.repeat(np.asarray(flags, dtype=np.uint8), [len(part) for part in parts])
        if len(mask):
            mask[0] = 0
        return ids, mask


def choose_format(tokenizer: TextTokenizer, style: str = "auto", default_system: bool = False) -> ChatFormat:
    """The format for a tokenizer: its chat template if it has one, else turn tokens if it has them, else plain lines.

    `default_system` keeps the system text that a template inserts by itself when a conversation has none.
    """
    has_turns = all(token in tokenizer.special for token in (USER, ME, END))
    if style == "auto":
        style = "template" if tokenizer.chat_template else "turns" if has_turns else "plain"
    if style == "template":
        if not tokenizer.chat_template:
            raise UsageError(
                f"--style template: the tokenizer {tokenizer.name} has no chat template; use another style"
            )
        return _from_template(tokenizer, default_system)
    if style == "turns":
        if not has_turns:
            raise UsageError(
                f"--style turns: the tokenizer {tokenizer.name} lacks {USER}, {ME} or {END}; use --style plain or "
                "train one with `prepare tokenizer`"
            )
        other, own, end = (tokenizer.special[token] for token in (USER, ME, END))
        opening = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
        return ChatFormat("turns", opening, [], [], [other], [end], [own], [end], [])
    opening = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    other, own, system, line_end = (tokenizer.encode_markup(text) for text in ("Other:", "Me:", "About me:", "\n"))
    return ChatFormat("plain", opening, system, line_end, other, line_end, own, line_end, [])


def _from_template(tokenizer: TextTokenizer, default_system: bool) -> ChatFormat:
    """Find what a template writes around the words by rendering it with words that are recognised again."""
    other, own, other_2, own_2, system = "@OTHER1@", "@OWN1@", "@OTHER2@", "@OWN2@", "@SYSTEM@"
    chat = [("user", other), ("assistant", own), ("user", other_2), ("assistant", own_2)]
    text = render(tokenizer, chat)
    with_system = render(tokenizer, [("system", system), *chat])
    try:
        first, rest = text.split(other)
        between_1, rest = rest.split(own)
        between_2, rest = rest.split(other_2)
        between_3, tail = rest.split(own_2)
        only_other = render(tokenizer, chat[:1]).split(other)[1]
        other_before = between_2.removeprefix(tail)
        own_before = between_3.removeprefix(only_other)
        system_before, rest = with_system.split(system)
        system_after = rest.split(other)[0].removesuffix(other_before)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"the chat template of {tokenizer.name} does not write the words of each turn once; use --style plain"
        ) from error
    regular = between_1 == between_3 and between_2 == tail + other_before and between_3 == only_other + own_before
    if not regular or not first.endswith(other_before):
        raise InputError(
            f"the chat template of {tokenizer.name} writes turns differently by position; use --style plain"
        )
    opening = first.removesuffix(other_before) if default_system else ""
    if not default_system and tokenizer.bos_id >= 0:
        bos = tokenizer.raw.id_to_token(tokenizer.bos_id)
        # Templates that start with BOS keep it; in ChatML the "BOS" is the start of every turn and is there anyway.
        if first.startswith(bos) and not other_before.startswith(bos):
            opening = bos
            system_before = system_before.removeprefix(bos)
    after = tokenizer.encode_markup(tail)
    ends = set(tokenizer.special.values())
    # The loss reaches to the first special token after the words (<|im_end|>), which is what ends a generated reply.
    n_end = next((i + 1 for i, index in enumerate(after) if index in ends), len(after))
    encode = tokenizer.encode_markup
    return ChatFormat(
        style="template",
        opening=encode(opening),
        system_before=encode(system_before),
        system_after=encode(system_after),
        other_before=encode(other_before),
        other_after=encode(only_other),
        own_before=encode(own_before),
        own_end=after[:n_end],
        own_after=after[n_end:],
    )


def render(tokenizer: TextTokenizer, chat: list[tuple[str, str]]) -> str:
    """The template's text for (role, words) pairs, in a sandbox: templates are programs from somebody else."""
    sandbox = need("jinja2.sandbox", "data")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise InputError(f"the chat template of {tokenizer.name} refuses a conversation: {message}; use --style plain")

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **_: __import__("json").dumps(value, ensure_ascii=False)
    messages = [{"role": role, "content": words} for role, words in chat]
    names = {
        f"{kind}_token": tokenizer.raw.id_to_token(index) if index >= 0 else ""
        for kind, index in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
    }
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=messages, add_generation_prompt=False, tools=None, **names)
    except InputError:
        raise
    except Exception as error:  # jinja2 raises many kinds, and a template may raise anything
        raise InputError(f"the chat template of {tokenizer.name} fails: {error}; use --style plain") from error
