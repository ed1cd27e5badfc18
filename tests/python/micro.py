"""A micro world for tests, made offline: a random Llama folder and a prepared corpus of 12 clients.

    python tests/python/micro.py DIR [--seed N] [--tied]

writes DIR/model (Hugging Face folder: vocab 96, hidden 32, 2 layers, 4 heads, 2 key-value heads, inter 64; with a
character tokenizer) and DIR/micro.h5 (schema "hetlora-data" version 1; clients 10 and 11 are held out).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import torch

VOCAB_SIZE = 96
N_CLIENTS = 12
HELD_OUT = (10, 11)
BOS, EOS = 0, 1
ALPHABET = [chr(code) for code in range(32, 126)]  # 94 printable characters -> ids 2..95
PARTS = {"train": 0, "valid": 1, "test": 2}


def build_model(folder: Path, seed: int = 0, tied: bool = False) -> Path:
    """Writes a random LlamaForCausalLM whose weights are large enough for every part of it to show in the loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        bos_token_id=BOS, eos_token_id=EOS, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.18,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):  # all ones would hide a forgotten norm weight
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<bos>": BOS, "<eos>": EOS} | {character: 2 + i for i, character in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def encode(text: str) -> list[int]:
    """Character ids of a text of printable ASCII without "~"."""
    return [2 + ALPHABET.index(character) for character in text]


def _conversation(rng: np.random.Generator, client: int) -> tuple[list[int], list[int], int]:
    """(ids, mask, prompt_length) of one conversation: bos, then turns in which every second one is the client's own."""
    words = ["tea", "rain", "yes", "sun?", "no!", "hill", "moss", "a pear", "Tuesday", "so it goes"]
    own = [words[(client + i) % len(words)] for i in range(4)]
    ids, mask, prompt_length = [BOS], [0], 1
    for turn in range(int(rng.integers(2, 7))):
        mine = turn % 2 == 1
        text = " ".join(rng.choice(own if mine else words, size=int(rng.integers(1, 4))))
        tokens = [*encode(text), EOS]
        if mine:
            prompt_length = len(ids)
        ids += tokens
        mask += [int(mine)] * len(tokens)
    return ids, mask, prompt_length


def build_corpus(path: Path, seed: int = 0, tokenizer_file: Path | None = None) -> Path:
    """Writes the prepared corpus. Client 0 has one train sequence only, client 1 the most."""
    rng = np.random.default_rng(seed)
    ids, mask, offset, client_of, part_of, label_of, prompt_of, client_offset = [], [], [0], [], [], [], [], [0]
    for client in range(N_CLIENTS):
        if client in HELD_OUT:
            parts = [1, 1, 1, 2, 2]
        elif client == 0:
            parts = [0]
        else:
            parts = [0] * (9 if client == 1 else int(rng.integers(2, 7))) + [1, 2]
        for part in parts:
            tokens, targets, prompt = _conversation(rng, client)
            ids += tokens
            mask += targets
            offset.append(len(ids))
            client_of.append(client)
            part_of.append(part)
            label_of.append(int(rng.integers(0, 3)))
            prompt_of.append(prompt)
        client_offset.append(len(client_of))
    pieces = [b"<bos>", b"<eos>"] + [character.encode() for character in ALPHABET]
    tokenizer_sha = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest() if tokenizer_file else "0" * 64
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        attributes = {
            "schema_name": "hetlora-data", "schema_version": 1, "creator": "tests/python/micro.py",
            "created_utc": "2000-01-01T00:00:00Z", "name": "micro", "source": "synthetic", "source_sha256": "0" * 64,
            "license": "CC0-1.0", "tokenizer_sha256": tokenizer_sha, "tokenizer_name": "micro-characters",
            "vocab_size": VOCAB_SIZE, "bos_id": BOS, "eos_id": EOS, "recipe": json.dumps({"seed": seed}),
        }  # fmt: skip
        for key, value in attributes.items():  # fixed-length strings, as `hetlora prepare` writes them
            file.attrs[key] = np.bytes_(value) if isinstance(value, str) else np.int64(value)
        for name, values, kind in (
            ("tokens/ids", ids, np.int32), ("tokens/mask", mask, np.uint8), ("sequences/offset", offset, np.int64),
            ("sequences/client", client_of, np.int32), ("sequences/part", part_of, np.uint8),
            ("sequences/label", label_of, np.int32), ("sequences/prompt_length", prompt_of, np.int32),
            ("clients/offset", client_offset, np.int64),
            ("clients/held_out", [int(c in HELD_OUT) for c in range(N_CLIENTS)], np.uint8),
            ("clients/name", [f"client-{c:02d}".encode() for c in range(N_CLIENTS)], "S9"),
            ("labels/name", [b"calm", b"glad", b"sour"], "S4"),
            ("vocab/bytes", list(b"".join(pieces)), np.uint8),
            ("vocab/offset", np.cumsum([0] + [len(piece) for piece in pieces]), np.int64),
        ):  # fmt: skip
            file.create_dataset(name, data=np.asarray(values, dtype=kind))
    return path


def build(folder: str | Path, seed: int = 0, tied: bool = False) -> tuple[Path, Path]:
    """Builds both below `folder`; returns (model folder, prepared file)."""
    folder = Path(folder)
    model = build_model(folder / "model", seed, tied)
    return model, build_corpus(folder / "micro.h5", seed, model / "tokenizer.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tied", action="store_true", help="tie the output head to the embedding")
    arguments = parser.parse_args()
    for written in build(arguments.dir, arguments.seed, arguments.tied):
        print(written)
