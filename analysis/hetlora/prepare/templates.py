"""How a prompt, its context and its response become one sequence: `alpaca`, `plain`, or a file of the user's.

A template is Jinja text. It is rendered with a mark in place of every value, so that what a record says is encoded as
plain text and only the template's own words as markup: no record can write a special token. The loss is on the response
and on the end-of-sequence token behind it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from hetlora.errors import InputError, UsageError, need

ALPACA = (
    "Below is an instruction that describes a task{% if context %}, paired with an input that provides further context"
    "{% endif %}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{{ prompt }}\n\n{% if context %}### Input:\n{{ context }}\n\n{% endif %}"
    "### Response:\n{{ response }}"
)
PLAIN = "{{ prompt }}\n{% if context %}{{ context }}\n{% endif %}{{ response }}"
KNOWN = {"alpaca": ALPACA, "plain": PLAIN}
MARK = re.compile("\ue000(\\w+)\ue001")


@dataclass(frozen=True)
class Piece:
    """A stretch of a sequence: text, whether it is a record's (else the template's), and whether it carries loss."""

    text: str
    own_words: bool
    loss: bool


class RecordTemplate:
    """A checked template. `pieces(values)` gives the stretches of one record."""

    def __init__(self, name: str, text: str, response: bool = True):
        """InputError if the text is no template or has no response, which is wanted unless `response` is False."""
        self.name, self._response = name, response
        sandbox = need("jinja2.sandbox", "data")
        jinja2 = need("jinja2", "data")
        environment = sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=False, autoescape=False
        )
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise InputError(f"the template {name} is not Jinja text: {error}") from error
        self._errors = jinja2.TemplateError
        self._layouts: dict[tuple[str, ...], list[str]] = {}
        if response and not re.search(r"\{\{-?\s*response\b", text):
            raise InputError(
                f"the template {name} has no {{{{ response }}}}: nothing would be trained on; "
                "write {{ response }} where the answer stands"
            )

    def pieces(self, values: dict[str, str]) -> list[Piece]:
        """The stretches for values (field -> text; a blank one counts as not there in `{% if %}`)."""
        marked = {key: f"\ue000{key}\ue001" if value else "" for key, value in values.items()}
        parts = self._layout(tuple(sorted(key for key in marked if marked[key])), marked)
        result: list[Piece] = []
        for i, part in enumerate(parts):
            if i % 2:
                result.append(Piece(values[part], True, part == "response"))
            elif part:
                result.append(Piece(part, False, False))
        return result

    def _layout(self, present: tuple[str, ...], marked: dict[str, str]) -> list[str]:
        """Template text and names of values in turn, the same for all records that have the same values."""
        if present not in self._layouts:
            try:
                parts = MARK.split(self._template.render(marked))
            except self._errors as error:
                fields = ", ".join(sorted(marked))
                raise InputError(f"the template {self.name} fails: {error}; it may use: {fields}") from error
            if self._response and parts[1::2].count("response") != 1:
                raise InputError(
                    f"the template {self.name} writes the response {parts[1::2].count('response')} times for a record "
                    f"with {', '.join(present)}; it must stand there once, in every case"
                )
            self._layouts[present] = parts
        return self._layouts[present]

    def stretches(self, values: dict[str, str]) -> list[Piece]:
        """The pieces as they are encoded.

        A space between two pieces belongs to the word behind it: that is how tokenizers see running text.
        """
        pieces = self.pieces(values)
        result: list[Piece] = []
        space = ""
        for i, piece in enumerate(pieces):
            text = space + piece.text
            space = ""
            if not piece.own_words and i + 1 < len(pieces):
                stripped = text.rstrip(" ")
                text, space = stripped, text[len(stripped) :]
            result.append(Piece(text, piece.own_words, piece.loss))
        return result

    def prompt_side(self, values: dict[str, str]) -> list[Piece]:
        """The pieces in front of the response (all, where there is none), without white space at the end."""
        result = []
        for piece in self.stretches(values):
            if piece.loss:
                break
            result.append(piece)
        if result and not result[-1].own_words:
            last = result.pop()
            result += [Piece(last.text.rstrip(), False, False)] if last.text.strip() else []
        return result


def load_template(name: str, response: bool = True) -> RecordTemplate:
    """A known template or a file's; without `response` it need not have one. UsageError if there is neither."""
    if name in KNOWN:
        return RecordTemplate(name, KNOWN[name], response)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"--template {name}: no known template (chat, {', '.join(KNOWN)}) and no such file")
    try:
        return RecordTemplate(str(path), path.read_text(encoding="utf-8").rstrip("\n"), response)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first") from error
