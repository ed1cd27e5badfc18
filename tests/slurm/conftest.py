from slurm_cluster import slurm  # noqa: F401  (the fixture of every file here)
