"""Preset full: all weights are trained and no adapter; what the run leaves, what is refused, and its export.

That it has the same bits on any number of MPI ranks and after a stop, drops clients and counts bytes as printed:
test_conformance.py, as for every method. That it is right: test_audit_full.py.
"""

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods  # noqa: E402
import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return folder, micro.build(folder)


def words(world: tuple, **changes: object) -> list[str]:
    return methods.settings(methods.TABLE["full"], world[1], **{"experiment.rounds": 2} | changes)


@pytest.fixture(scope="module")
def finished(world):
    """A finished run, fp32."""
    return methods.run(world[0] / "run", words(world))


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return {name: value for name, value in methods.state_values(run).items() if name.startswith("base/")}


def test_the_checkpoint_holds_all_weights_by_their_names_and_there_is_no_adapter(world, finished):
    from safetensors.numpy import load_file

    start = load_file(world[1][0] / "model.safetensors")
    stored = weights_of(finished)
    assert {f"base/{name}" for name in start} == stored.keys()
    assert sum(value.size for value in stored.values()) == methods.N_WEIGHTS
    assert all(value.dtype == np.float32 for value in stored.values())
    moved = [name for name in start if not np.array_equal(start[name].ravel(), stored[f"base/{name}"])]
    assert sorted(moved) == sorted(start), "some tensor was not trained"
    assert not (finished / "adapter").exists() and (finished / "COMPLETE").exists()
    with h5py.File(finished / "run.h5") as file:
        assert (file["rounds/adapter_norm"][:] == 0).all() and (file["rounds/slots_alive"][:] == 0).all()


def test_lora_keys_do_not_matter(world, finished, tmp_path):
    other = methods.run(tmp_path / "run", words(world, **{
        "lora.targets": "all-linear", "lora.rank_list": ",".join(["3"] * 12), "lora.scale": 7, "lora.dropout": 0.5,
    }))  # fmt: skip
    mine, theirs = weights_of(finished), weights_of(other)
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


def test_one_client_alone_makes_the_global_weights(world, tmp_path):
    """The mean of one change is that client's weights, whatever its weight is."""
    alone = {"experiment.clients_per_round": 1, "experiment.rounds": 1}
    samples = methods.run(tmp_path / "a", words(world, **alone))
    uniform = methods.run(tmp_path / "b", words(world, **alone, **{"strategy.client_weight": "uniform"}))
    fast = methods.run(tmp_path / "c", words(world, **alone, **{"comm.reduction": "fast"}))
    for other in (uniform, fast):
        assert all(a.tobytes() == b.tobytes()
                   for a, b in zip(weights_of(samples).values(), weights_of(other).values(), strict=True))  # fmt: skip


def test_passes_of_fewer_rows_change_rounding_only(world, finished, tmp_path):
    small = methods.run(tmp_path / "run", words(world, **{"compute.pack_tokens": 24}))
    mine, theirs = weights_of(finished), weights_of(small)
    for name, value in mine.items():
        assert np.linalg.norm(value - theirs[name]) <= 2e-3 * np.linalg.norm(value), name


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_merged_export_is_the_trained_model(world, tmp_path, precision):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run = methods.run(tmp_path / "run", words(world, **{"model.precision": precision, "evaluation.every": 1}))
    done = program.start("export", run, "--to", tmp_path / "peft")
    assert done.returncode == 2
    assert "is a run of full, which trains the base itself: there is no adapter; take --merged" in done.stderr
    program.finished("export", run, "--merged", "--to", tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (world[1][0] / "tokenizer.json").read_bytes()
    stored = weights_of(run)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == (torch.float64 if precision == "fp64" else torch.float32)
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.detach().numpy().ravel(), stored[f"base/{name}"]), name
    # The program itself finds the run's last evaluation in the exported model.
    config = program.write_ini(tmp_path / "e.ini", (tmp_path / "model", world[1][1]),
                               {"model": {"precision": precision}})  # fmt: skip
    printed = program.finished("evaluate", "--config", config).stdout
    told = float(re.search(r"loss (\S+)", printed).group(1))
    assert told == pytest.approx(methods.log(run).rounds["eval_loss"][-1], abs=2e-6)


def test_a_finished_run_goes_on_to_more_rounds(world, finished, tmp_path):
    whole = methods.run(tmp_path / "whole", words(world, **{"experiment.rounds": 3}))
    methods.run(tmp_path / "run", words(world))
    methods.run(tmp_path / "run", words(world, **{"experiment.rounds": 3}), 0, "--resume")
    methods.assert_same(tmp_path / "run", whole)


def test_texts_samples_and_clients_are_judged_with_the_trained_weights(world, tmp_path):
    run = methods.run(tmp_path / "run", words(world, **{
        "evaluation.metrics": "perplexity,rouge1", "evaluation.text_sequences": 4, "evaluation.text_tokens": 4,
        "evaluation.samples": 2, "evaluation.sample_tokens": 4, "evaluation.clients": "final",
    }))  # fmt: skip
    logged = methods.log(run)
    assert np.isfinite(logged.rounds["eval_rouge1"]).all()
    trained = np.isfinite(logged.clients["eval_loss_base"])
    assert (
        trained.any()
        and logged.clients["eval_loss_final"][trained].mean() < logged.clients["eval_loss_base"][trained].mean()
    )
    for line in (run / "samples.jsonl").read_text().splitlines():
        assert json.loads(line)["base"] is None


def test_every_client_is_a_unit_of_work_of_its_own(finished):
    events = methods.log(finished).participation
    first = events["round"] == 1
    assert sorted(events["pack"][first]) == list(range(first.sum()))


REFUSED = {
    "bf16": ({"model.precision": "bf16"}, "model.precision = bf16", "take fp32"),
    "cuda": ({"compute.device": "cuda"}, "compute.device = cuda", "take compute.device = cpu"),
    "packed": ({"compute.gemm": "onednn"}, "compute.gemm = onednn", "leave it at auto"),
    "recompute": ({"compute.recompute": "layer"}, "compute.recompute = layer", "lower compute.pack_tokens"),
    "labels": ({"model.task": "classification"}, "model.task = classification", "take an adapter method"),
    "spectra": ({"log.spectra": 1}, "log.spectra", "take log.spectra = 0"),
    "merge": ({"strategy.merge": "product"}, "strategy.trainable = base", "use preset full"),
    "sparsity": ({"strategy.client_weight": "sparsity"}, "strategy.trainable = base", "uniform or samples"),
    "optimizer": ({"strategy.server_optimizer": "momentum"}, "strategy.trainable = base", "use preset full"),
    "preset": ({"strategy.preset": "zeropad", "strategy.trainable": "base"}, "with preset zeropad", "preset full"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_in_one_line(world, tmp_path, case):
    changes, what, mend = REFUSED[case]
    done = program.start("run", "--output", tmp_path / "run", *words(world, **changes))
    assert done.returncode == 2, done.stderr
    told = program.messages(done.stderr)
    assert len(told) == 1 and what in done.stderr and mend in done.stderr, done.stderr
    assert not (tmp_path / "run" / "run.h5").exists()


def test_adapter_and_plugin_are_refused(world, tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text("def weight(update):\n    return 1.0\n")
    adapted = methods.run(
        tmp_path / "zeropad", methods.settings(methods.TABLE["zeropad"], world[1], **{"experiment.rounds": 1})
    )
    for change, mend in (({"model.adapter": adapted / "adapter"}, "merge that adapter into the base first"),
                         ({"strategy.plugin": plugin}, "remove it")):  # fmt: skip
        done = program.start("run", "--output", tmp_path / "run", *words(world, **change))
        assert done.returncode == 2 and mend in done.stderr, done.stderr


def test_bench_is_about_adapters_and_plan_measures(world, tmp_path):
    done = program.start("bench", *words(world))
    assert done.returncode == 2 and "bench measures the step of adapters" in done.stderr
    done = program.finished("plan", *words(world), "--json", tmp_path / "plan.json")
    assert "no adapters: the keys of [lora] have no effect" in done.stdout + done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["peak_memory_bytes"] > 0


def test_too_little_memory_is_told_before_training(world, tmp_path):
    done = program.start("run", "--output", tmp_path / "run", *words(world, **{"compute.memory_gib": 0.01}))
    assert done.returncode == 4, done.stderr
    assert "a client's copy, gradients, moments, the sum" in done.stderr and "take an adapter method" in done.stderr


def test_the_description_says_what_matters():
    text = program.finished("strategies", "full").stdout
    for part in ("no adapter. All keys of [lora] have no effect", "export --merged", "Up per client: W; down: W",
                 "16 for the exact sum"):  # fmt: skip
        assert part in text


def test_a_run_that_diverges_stops_with_a_cure(world, tmp_path):
    done = program.start("run", "--output", tmp_path / "run", *words(world, **{
        "local.optimizer": "sgd", "local.learning_rate": 1e6,
    }))  # fmt: skip
    assert done.returncode == 5 and "lower local.learning_rate" in done.stderr, done.stderr
