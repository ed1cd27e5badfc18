"""`hetlora.participation(paths)`: who took part when, of many runs, as one pandas table."""

import warnings

import numpy as np

from hetlora.errors import need
from hetlora.run_folders import Paths
from hetlora.runs_settings import read_runs, setting_column, swept_settings, unique_names


def participation(paths: Paths):
    """One row per participation of a client in a round, as a pandas.DataFrame.

    Columns: `run` (name), `state`, every setting that differs between the runs, and the columns of /participation
    (docs/run-log.md). paths: as in `open_runs`. A run without participations has no rows: it is named in
    `attrs['without_events']` ({name: why}) and in a warning. Raises InputError where no run is found.
    """
    pandas = need("pandas", "analysis")
    records = read_runs(paths, ("participation",))
    names = unique_names([record.path for record in records])
    counts = [len(record.participation.get("round", ())) for record in records]
    codes = np.repeat(np.arange(len(records)), counts)
    states = [record.state for record in records]
    columns = {
        "run": pandas.Categorical.from_codes(codes, names),
        "state": pandas.Categorical([states[i] for i in codes], sorted(set(states))),
    }
    for key, values in swept_settings(records).items():
        columns[key] = setting_column(values)[codes]
    with_events = [record.participation for record, n in zip(records, counts, strict=True) if n]
    for name in dict.fromkeys(key for events in with_events for key in events):
        columns[name] = np.concatenate(
            [events.get(name, np.full(len(events["round"]), np.nan)) for events in with_events]
        )
    table = pandas.DataFrame(columns)
    without = {
        name: "; ".join(record.problems) or f"{record.state}, {record.n_rounds} rounds"
        for name, record, n in zip(names, records, counts, strict=True)
        if n == 0
    }
    table.attrs["without_events"] = without
    if without:
        listed = "; ".join(f"{name} ({why})" for name, why in without.items())
        warnings.warn(f"runs without participations: {listed}", stacklevel=2)
    return table
