"""A page of samples with the loss mask made visible: one HTML file without any other, for light and dark screens."""

import codecs
from importlib import resources
from pathlib import Path

import numpy as np

from hetlora import __version__
from hetlora.errors import need
from hetlora.files import atomic_file
from hetlora.prepare.data_file import Client, Prepared, Sequence
from hetlora.prepare.splits import PART_NAMES
from hetlora.prepare.tokenizer import TextTokenizer

MOST_SAMPLES = 24
LONGEST = 1200  # tokens of a sample that are shown


def token_texts(ids: np.ndarray, vocabulary: list[bytes]) -> list[str]:
    """The text of each token; a character whose bytes are spread over several tokens stands at its last."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(vocabulary[index]) for index in ids]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def chosen_samples(prepared: Prepared, n: int) -> list[tuple[Client, Sequence]]:
    """n sequences, evenly spread over all, so that every part, client and label has its chance."""
    many = sum(len(client.sequences) for client in prepared.clients)
    shown = min(n, many)
    wanted = [i * many // shown for i in range(shown)]
    chosen, before = [], 0
    for client in prepared.clients:
        while len(chosen) < shown and wanted[len(chosen)] < before + len(client.sequences):
            chosen.append((client, client.sequences[wanted[len(chosen)] - before]))
        before += len(client.sequences)
    return chosen


def sample_view(client: Client, sequence: Sequence, prepared: Prepared, vocabulary: list[bytes]) -> dict:
    """What the page shows of one sequence: facts, and tokens as (text, loss)."""
    shown = slice(0, LONGEST)
    texts = token_texts(sequence.ids[shown], vocabulary)
    if prepared.task == "classification" and len(sequence.ids) <= LONGEST:
        texts[-1] = f" {prepared.labels[sequence.label]}"
    return {
        "client": client.name,
        "part": PART_NAMES[sequence.part],
        "held_out": client.held_out,
        "label": prepared.labels[sequence.label] if sequence.label >= 0 else "",
        "group": prepared.groups[sequence.group] if sequence.group >= 0 else "",
        "n_tokens": len(sequence.ids),
        "n_loss": int(sequence.mask.sum()),
        "left_out": max(0, len(sequence.ids) - LONGEST),
        "tokens": [
            {"text": text, "loss": bool(loss), "index": int(index)}
            for text, loss, index in zip(texts, sequence.mask[shown], sequence.ids[shown], strict=True)
        ],
    }


def write_samples_page(path: str, prepared: Prepared, tokenizer: TextTokenizer, summary: dict) -> None:
    """Write the page. EnvironmentProblem without jinja2, InputError if the file cannot be written."""
    jinja2 = need("jinja2", "data")
    vocabulary = tokenizer.vocabulary()
    samples = [sample_view(*one, prepared, vocabulary) for one in chosen_samples(prepared, MOST_SAMPLES)]
    text = resources.files("hetlora.prepare").joinpath("samples_page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(text).render(
        title=prepared.name,
        summary=summary,
        parts=[{"name": name, **counts} for name, counts in summary["parts"].items() if counts["sequences"]],
        notes=prepared.notes,
        task=prepared.task,
        samples=samples,
        tokenizer=f"{tokenizer.name} ({tokenizer.vocab_size:,} tokens)",
        license=prepared.license,
        version=__version__,
    )
    with atomic_file(Path(path)) as file:
        file.write_text(page, encoding="utf-8")
    print(f"wrote {path}: {len(samples)} samples")
