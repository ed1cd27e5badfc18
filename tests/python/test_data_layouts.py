"""A data file that another program laid out differently trains the same: tokens are read straight from the file's bytes
where they lie in one stretch, by HDF5 elsewhere."""

import sys
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro.build(tmp_path_factory.mktemp("layouts"))


def trained(folder: Path, world: tuple[Path, Path]) -> list[float]:
    """Losses of a short run."""
    ini = program.write_ini(folder / "run.ini", world, {"experiment": {"rounds": 2}})
    done = program.start("run", "--config", ini, "--output", folder / "run")
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "run" / "run.h5") as file:
        return [*file["rounds/train_loss"][1:].tolist(), *file["rounds/eval_loss"][:].tolist()]


def rewritten(file: Path, to: Path, compressed: bool, **options) -> Path:
    """The same content in another file."""
    with h5py.File(file) as source, h5py.File(to, "w", **options) as out:
        out.attrs.update(source.attrs)
        for name in source:
            source.copy(name, out)
        if compressed:
            ids = out["tokens/ids"][:]
            del out["tokens/ids"]
            out["tokens"].create_dataset("ids", data=ids, chunks=(100,), compression="gzip")
    return to


@pytest.mark.parametrize("layout", ["user block", "compressed", "newest format"])
def test_another_layout_trains_the_same(world, tmp_path, layout):
    options = {"user block": {"userblock_size": 1024}, "newest format": {"libver": "latest"}}.get(layout, {})
    other = rewritten(world[1], tmp_path / "other.h5", layout == "compressed", **options)
    assert trained(tmp_path / "a", world) == trained(tmp_path / "b", (world[0], other))
