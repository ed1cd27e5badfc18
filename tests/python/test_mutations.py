"""The list of mutations fits today's source; with HETLORA_TEST_LONG=1 the whole campaign runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "mutations"))

from mutations import MUTATIONS  # noqa: E402


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_finds_its_text_once(mutation):
    text = (ROOT / mutation.file).read_text()
    assert mutation.mutate(text) != text


def test_names_are_unique_and_tests_exist():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    lists = "".join(path.read_text() for path in (ROOT / "tests").glob("*/CMakeLists.txt"))
    audits = (ROOT / "tests" / "python" / "test_audit_program.py").read_text()
    resumes = (ROOT / "tests" / "python" / "test_resume.py").read_text()
    for mutation in MUTATIONS:
        assert mutation.tests or mutation.audit or mutation.resume, mutation.name
        for target in mutation.tests:
            assert f"NAME {target} " in lists or f"NAME {target}\n" in lists, mutation.name
        assert mutation.resume is None or f"def {mutation.resume}(" in resumes, mutation.name
        assert mutation.audit is None or f'"{mutation.audit}": (' in audits, mutation.name


def test_the_document_lists_every_mutation():
    rows = (ROOT / "docs" / "mutations.md").read_text()
    missing = [m.name for m in MUTATIONS if f"| {m.name} | `{m.file}` |" not in rows]
    assert not missing, "run tests/mutations/run_mutations.py --write docs/mutations.md"
    assert "it survives" not in rows


@pytest.mark.skipif(os.environ.get("HETLORA_TEST_LONG") != "1", reason="many builds: HETLORA_TEST_LONG=1 runs it")
def test_every_mutation_is_caught():
    script = ROOT / "tests" / "mutations" / "run_mutations.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
