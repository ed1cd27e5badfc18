"""Reading possibly compressed files and writing files and folders whole or not at all."""

import contextlib
import hashlib
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hetlora.errors import InputError


def existing_file(path: str | os.PathLike, what: str) -> Path:
    """`path` as a Path, or an InputError that names `what` was expected there."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder, but {what} is a file; give the file itself")
    if not path.is_file():
        raise InputError(f"no such file: {path} ({what}); check the path")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes as stored, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_all(paths: list[Path]) -> str:
    """SHA-256 of one file, or of the list of the files' SHA-256 when there are several."""
    digests = [sha256_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


SMALLEST_STORED_HASH = 64 << 20


def store_sha256(path: Path) -> None:
    """Write PATH.sha256 for a large file, so that no start of the program has to hash it.

    The format is that of include/hetlora/base/stored_hash.hpp, which says when it is believed. One that somebody else
    wrote is left alone.
    """
    beside = path.with_name(path.name + ".sha256")
    found = path.stat()
    if found.st_size < SMALLEST_STORED_HASH or (beside.is_file() and "\n# size " not in beside.read_text()):
        return
    with atomic_file(beside) as temporary:
        stamp = f"# size {found.st_size} mtime_ns {found.st_mtime_ns}"
        temporary.write_text(f"{sha256_of(path)}  {path.name}\n{stamp}\n")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a plain or .xz file; InputError if it cannot be unpacked."""
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip(b"\r\n")
    except (lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path} cannot be unpacked as xz: {error}; is the file complete?") from error


def read_text(path: Path) -> str:
    """The whole of a plain or .xz UTF-8 text file; undecodable bytes are an InputError with their offset."""
    data = b"\n".join(line for _, line in read_lines(path))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first") from error


def plain_suffix(path: Path) -> str:
    """The suffix that says what is inside: 'a.jsonl.xz' and 'a.jsonl' both give '.jsonl'."""
    return Path(path.stem).suffix if path.suffix == ".xz" else path.suffix


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a temporary name in the target's folder; renamed to `target` on success, removed on any failure."""
    target = Path(target).expanduser()
    if target.is_dir():
        raise InputError(f"{target} is a folder, but a file is to be written there; give a file name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write in {target.parent}: {error.strerror}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, marker: str) -> Iterator[Path]:
    """Yields an empty temporary folder beside `target`; renamed to `target` on success, removed on any failure.

    An existing target is replaced only if it is empty or contains `marker` (it is then of the same kind); anything
    else is refused, so that a mistyped path never deletes foreign files.
    """
    target = Path(os.path.abspath(Path(target).expanduser()))
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, but a folder is to be written there; choose another name")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).exists():
        raise InputError(f"{target} holds other files (no {marker}), so it is not replaced; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write in {target.parent}: {error.strerror}; choose another place") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.iterdir():
            file.chmod(0o666 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
