"""Own data for real: Dolly by category, 20 Newsgroups by topic, SST-2; prepared, dealt out by Dirichlet, trained."""

from __future__ import annotations

import lzma
import sys
from itertools import islice
from pathlib import Path

import pytest
from hetlora.run_record import read_run
from prepare_fixtures import check_file, read, run, shared_data

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

RECORDS = 800
CASES = {
    "dolly": (
        "jsonl", ("dolly15k_fedit", "dolly15k_fedit10.jsonl.xz"),
        ["--prompt-field", "instruction", "--context-field", "context", "--response-field", "response",
         "--group-field", "category", "--template", "alpaca"], "group", None,
    ),
    "news20": (
        "jsonl", ("news20_bydate", "news20_bydate.jsonl.xz"),
        ["--prompt-field", "text", "--label-field", "group", "--client-field", "author",
         "--valid-fraction", "0.1", "--test-fraction", "0.1"], "label", "{{ prompt }}\nGroup: {{ response }}",
    ),
    "sst2": (
        "csv", ("sst2", "train.tsv.xz"),
        ["--prompt-field", "sentence", "--label-field", "label", "--label-words", "0=negative,1=positive"],
        "label", "Review: {{ prompt }}\nSentiment: {{ response }}",
    ),
}  # fmt: skip


def some_of(source: Path, target: Path) -> Path:
    """Every so-many-th record of the file (labels are in blocks), and the header of a .tsv."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        header = [next(file)] if target.suffix == ".tsv" else []
        step = 20 if target.suffix == ".jsonl" else 5
        target.write_text("".join([*header, *islice(file, 0, RECORDS * step, step)]), encoding="utf-8")
    return target


@program.needs_program
@pytest.mark.parametrize("name", CASES)
def test_prepare_deal_and_train(capsys, tmp_path, name):
    verb, source, fields, by, template = CASES[name]
    file = some_of(shared_data(*source), tmp_path / f"{name}.{'tsv' if verb == 'csv' else 'jsonl'}")
    model = micro.build_model(tmp_path / "model")
    if template:
        (tmp_path / "template.txt").write_text(template)
        fields = [*fields, "--template", tmp_path / "template.txt"]
    out = tmp_path / "own.h5"
    page = tmp_path / "samples.html"
    options = ["--model", model, "--max-length", "120", "--skip-bad", "--output", out, "--samples-page", page]
    code, text, err = run(capsys, "prepare", verb, file, *fields, *options)
    assert code == 0, err
    data = read(out)
    check_file(data)
    assert "duplicates:" in text and "truncated:" in text and page.stat().st_size > 5000
    assert len(data[f"{by}s/name"]) == {"dolly": 8, "news20": 20, "sst2": 2}[name]
    changes = {
        "data": {"partition": "dirichlet", "partition_clients": 12, "dirichlet_alpha": 0.3, "dirichlet_by": by,
                 "sequence_length": 64},
        "experiment": {"rounds": 2, "clients_per_round": 3},
        "local": {"steps": 1},
        "evaluation": {"sequences": 20},
    }  # fmt: skip
    ini = program.write_ini(tmp_path / "run.ini", (model, out), changes)
    done = program.start("run", "--config", ini, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = read_run(tmp_path / "run")
    assert record.n_rounds == 2
    counts = record.labels["n_train_sequences"]
    assert counts.sum() == (data["sequences/part"] == 0).sum() and counts.shape == (12, len(data[f"{by}s/name"]))
    shares = counts[counts.sum(axis=1) > 0] / counts.sum(axis=1, keepdims=True)[counts.sum(axis=1) > 0]
    assert shares.max(axis=1).mean() > 1.5 * (counts.sum(axis=0) / counts.sum()).max(), "clients are skewed"
