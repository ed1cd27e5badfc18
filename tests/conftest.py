"""The order of the files in `make test`: pytest-xdist hands them out one by one, so the long ones go first."""

# Files of tests/slurm mostly wait, so others stand between them: then the cores have work meanwhile.
FIRST = (
    "test_run_job.py", "test_mpich.py", "test_conformance.py", "test_sweep_submit.py", "test_generate.py",
    "test_sweep_job.py", "test_audit.py", "test_sweep.py", "test_audit_program.py", "test_resume_kills.py",
    "test_resume.py", "test_setup.py", "test_audit_methods.py", "test_plugins.py", "test_merge_rules.py",
    "test_bad_input.py", "test_gguf_models.py", "test_kernel_vectors.py", "test_families.py",
    "test_plugin_errors.py", "test_bad_input_mpi.py", "test_task_metrics.py", "test_method_state.py",
    "test_classification.py", "test_big_corpus.py", "test_resume_damage.py", "test_start_adapter.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The files of FIRST in its order, then the others; the order within a file stays."""
    others = len(FIRST)
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, others))
