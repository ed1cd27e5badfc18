"""The include graph holds the layers of docs/architecture.md: a module includes only modules of lower layers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYER = {
    "base": 0,
    "config": 0,
    "tensor": 1,
    "comm": 1,
    "store": 1,
    "plugin": 1,
    "model": 2,
    "cuda": 2,
    "data": 2,
    "train": 3,
    "fed": 4,
    "sweep": 4,
    "app": 5,
}
# Modules of one layer do not see each other, except these.
ALLOWED_SIDEWAYS = {("config", "base"), ("cuda", "model")}
SOURCES = sorted(
    path
    for folder in ("include/hetlora", "src")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".hpp", ".cpp", ".inc"}
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[2] if parts[0] == "include" else parts[1]


def included_modules(text: str) -> set[str]:
    return set(re.findall(r'#include "hetlora/(\w+)/', text))


def is_allowed(module: str, other: str) -> bool:
    return module == other or (module, other) in ALLOWED_SIDEWAYS or LAYER[other] < LAYER[module]


def test_there_is_something_to_check():
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_point_downwards(path):
    module = module_of(path)
    wrong = [other for other in included_modules(path.read_text()) if not is_allowed(module, other)]
    assert not wrong, f"{path.relative_to(ROOT)} (layer {LAYER[module]}, {module}) includes {wrong}"


@pytest.mark.parametrize(
    ("header", "owners"),
    [
        (r"#include <mpi\.h>", r"src/comm/mpi_"),
        (r"#include <hdf5(_hl)?\.h>", r"(src|include/hetlora)/store/hdf5_"),
        (r"#include <boost/program_options", r"src/config/"),
        (
            r"#include <(ATen|c10|torch)/",
            r"include/hetlora/tensor/torch\.hpp|(include/hetlora|src)/plugin/|src/tensor/(frozen_linear|matrix_unit)\.cpp|src/cuda/",
        ),
        (r"#include <(ATen/cuda|c10/cuda|cuda)", r"src/cuda/graph_step\.cpp"),
    ],
)
def test_a_library_has_one_door(header, owners):
    users = [str(p.relative_to(ROOT)) for p in SOURCES if re.search(header, p.read_text())]
    assert users, f"nobody includes {header}: the check is out of date"
    assert not [user for user in users if not re.match(owners, user)]


def test_the_check_notices_an_arrow_that_points_up():
    assert not is_allowed("tensor", "store")
    assert not is_allowed("store", "data")
    assert not is_allowed("fed", "app")
    assert is_allowed("train", "model")
