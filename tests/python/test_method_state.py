"""What methods keep beside the global adapter - a changed base, clients' own factors, the server's moments - survives a
kill, and its absence or damage is one clear message. Unknown names and lora_ranks that do not fit are refused."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods  # noqa: E402
import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program
ROUNDS = 7
KILLED = {
    "flora": ("flora", {}),
    "florist": ("florist", {}),
    "fedex": ("fedex", {}),
    "fedsa": ("fedsa", {}),
    "sa-fedlora": ("sa-fedlora", {}),
    "momentum": ("zeropad", {"strategy.aggregate": "deltas", "strategy.server_optimizer": "momentum"}),
    "adam": ("fslora", {"strategy.server_optimizer": "adam", "strategy.server_learning_rate": 0.01}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    return folder, micro.build(folder)


def words_of(world, case: str, **changes: object) -> list[str]:
    preset, policies = KILLED[case]
    return methods.settings(methods.TABLE[preset], world[1], **policies | changes)


def rows(run: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run / "progress.jsonl").read_text().count("\n")
    return 0


@pytest.mark.parametrize("case", KILLED)
def test_killed_between_two_checkpoints(world, tmp_path, case):
    """Checkpoints every 2 rounds; killed after round 3 or later, so that rounds are trained twice."""
    words = words_of(world, case, **{"experiment.rounds": ROUNDS, "checkpoint.every": 2})
    whole, run = methods.run(tmp_path / "whole", words), tmp_path / "run"
    command = [str(program.PROGRAM), "run", "--output", str(run), *words]
    process = subprocess.Popen(command, env=program.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while rows(run) < 4 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=program.TIME_LIMIT_S)
    methods.run(run, words, 0, "--resume")
    methods.assert_same(run, whole)


def test_private_versions_that_a_checkpoint_needs_are_kept_and_older_ones_removed(world, tmp_path):
    """Every client takes part in every round; the last two checkpoints are of rounds 4 and 6 at the stop."""
    words = words_of(world, "fedsa", **{"experiment.rounds": 50, "checkpoint.every": 2, "checkpoint.keep": 2,
                                        "experiment.clients_per_round": 0})  # fmt: skip
    run = tmp_path / "run"
    process = subprocess.Popen(
        [str(program.PROGRAM), "run", "--output", str(run), *words], env=program.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while rows(run) < 8 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=program.TIME_LIMIT_S)
    kept = sorted(int(folder.name.removeprefix("round_")) for folder in (run / "checkpoint").glob("round_??????"))
    assert kept and all(round_ % 2 == 0 for round_ in kept)
    for client in range(10):
        folder = run / f"private/client_{client:06}"  # the kill may have left a temporary file in it
        versions = sorted(int(file.stem.removeprefix("round_")) for file in folder.glob("round_??????.safetensors"))
        assert set(kept) <= set(versions)
        assert versions[0] >= kept[0] - 2, "versions that no checkpoint can name stay"


@pytest.fixture(scope="module")
def stopped(world):
    """stopped(case): folder of a run of 2 rounds that can go on to more; to be copied."""
    made = {}

    def of(case: str) -> Path:
        if case not in made:
            words = words_of(world, case, **{"experiment.rounds": 2})
            made[case] = methods.run(world[0] / f"stopped_{case}", words)
        return made[case]

    return of


def refused(run: Path, words: list[str], code: int) -> str:
    done = program.start("run", "--output", run, "--resume", *words)
    assert done.returncode == code, done.stdout + done.stderr
    said = program.messages(done.stderr)
    assert len(said) == 1, done.stderr
    return said[0]


def private_file(run: Path) -> Path:
    values = methods.state_values(run)["private_rounds"]
    client = int(np.flatnonzero(values)[0])
    return run / f"private/client_{client:06}/round_{values[client]:06}.safetensors"


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another size"])
def test_a_missing_or_damaged_private_factor(world, stopped, tmp_path, damage):
    import shutil

    run = shutil.copytree(stopped("fedsa"), tmp_path / "run")
    file = private_file(run)
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        from safetensors.numpy import load_file, save_file

        save_file({"b": load_file(file)["b"][:-3]}, file)
    message = refused(run, words_of(world, "fedsa"), 3)
    assert file.name in message and file.parent.name in message, message


@pytest.mark.parametrize("damage", ["flipped", "missing matrix"])
def test_a_damaged_base_in_a_checkpoint(world, stopped, tmp_path, damage):
    import shutil

    run = shutil.copytree(stopped("flora"), tmp_path / "run")
    state = methods.state(run)
    if damage == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        assert "is damaged" in refused(run, words_of(world, "flora"), 3)
        return
    from safetensors.numpy import load_file, save_file

    values = load_file(state)
    gone = next(name for name in values if name.startswith("base/"))
    values.pop(gone)
    save_file(values, state)
    sums = subprocess.run(
        ["sha256sum", "state.safetensors", "manifest.json"],
        cwd=state.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    (state.parent / "SHA256SUMS").write_text(sums.stdout)
    message = refused(run, words_of(world, "flora"), 3)
    assert gone in message and "round 2" in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"strategy.preset": "flexlor"}, ["flexlor", "did you mean flexlora"]),
        ({"strategy.slot_norm": "contributers"}, ["strategy.slot_norm", "contributors"]),
        ({"strategy.merge": "svd"}, ["strategy.merge", "product"]),
        ({"strategy.slot_norms": "all"}, ["slot_norms", "slot_norm"]),
        ({"strategy.preset": "raflora", "strategy.rank_levels": "2,8"}, ["lora_rank 4", "none of the levels 2,8"]),
        ({"strategy.preset": "raflora", "strategy.rank_levels": "0,8"}, ["rank_levels"]),
        ({"strategy.preset": "fedex"}, ["fedex", "equal lora_ranks"]),
        ({"strategy.preset": "flora", "strategy.base_update": "none"}, ["merge = stack", "base_update = merge"]),
        ({"strategy.server_learning_rate": 0.5}, ["server_learning_rate", "server_optimizer"]),
        ({"strategy.preset": "fslora", "strategy.server_optimizer": "adam", "strategy.server_beta2": 1},
         ["server_beta2"]),
    ],
)  # fmt: skip
def test_bad_strategies_are_one_clear_message(world, tmp_path, changes, parts):
    done = program.start(
        "run", "--output", tmp_path / "run", *methods.settings(methods.TABLE["zeropad"], world[1], **changes)
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = program.messages(done.stderr)
    assert len(said) == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def test_strategies_as_json_is_the_printed_table(world):
    printed = program.start("strategies").stdout
    for name, row in methods.TABLE.items():
        line = next(line for line in printed.splitlines() if line.startswith(name + " "))
        assert row["up"] in line and row["down"] in line and row["paper"] in line
        alone = json.loads(program.start("strategies", name, "--json").stdout) if row["aliases"] else [row]
        assert alone == [row]
    assert program.start("strategies", "nonsense", "--json").returncode == 2
