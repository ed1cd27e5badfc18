"""The one reader of a run's folder: `read_run(folder)`; the log by h5py, or progress.jsonl where the log is damaged.

Nothing is locked and nothing is written, so the folder of a run that goes on may be read.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetlora.errors import InputError, UserError, need
from hetlora.run_config import Config, flat, read_config
from hetlora.run_folders import find_runs as find_runs
from hetlora.run_progress import progress_groups, read_progress
from hetlora.run_state import read_status, state_of

RUN_SCHEMA = "hetlora-run"
SCHEMA_VERSION = 1
GROUPS = ("rounds", "participation", "slots", "clients", "labels", "layers", "provenance")
LIVE_READ_ATTEMPTS = 3

Columns = dict[str, np.ndarray]


@dataclass
class RunRecord:
    """What a run's folder holds, of committed rounds only. Groups that were not asked for, or are lost, are empty."""

    path: Path
    name: str = ""
    """experiment.name, else the folder's name."""
    run_id: str = ""
    """Hash (64 hex digits) of all that can change the result, "" if unknown; equal for equal runs."""
    config: Config = field(default_factory=dict)
    """section -> key -> value, from config.json."""
    status: dict = field(default_factory=dict)
    """status.json as it is (docs/run-log.md)."""
    state: str = "waiting"
    """One of run_state.STATES; 'damaged': run.h5 cannot be read, see `problems`."""
    problems: list[str] = field(default_factory=list)
    """What could not be read and why, or why the run ended early: one sentence each."""
    source: str = ""
    """The file that the rounds come from: 'run.h5', 'progress.jsonl', or '' if there are none."""
    committed_rounds: int = 0
    """Rows of `rounds`, row 0 (the state before training) included."""
    rank_max: int = 0
    schema_version: int = 0
    """Of run.h5; 0 where it names none."""
    rounds: Columns = field(default_factory=dict)
    """/rounds: name -> [round]."""
    participation: Columns = field(default_factory=dict)
    """/participation: name -> [event]."""
    slots: Columns = field(default_factory=dict)
    """/slots: 'round' [round], 'slot' [slot], 'energy' and 'n_contributors' [round, slot]."""
    clients: Columns = field(default_factory=dict)
    """/clients: name -> [client]; 'name' holds str."""
    labels: Columns = field(default_factory=dict)
    """/labels: 'name' [label], 'n_train_sequences' [client, label]; empty where the data has no labels or groups."""
    layers: Columns | None = None
    """/layers as it is, cut to committed rounds; None where the run has no such group."""
    units: dict[str, str] = field(default_factory=dict)
    """'group/variable' -> units, where `describe` was asked for."""
    long_names: dict[str, str] = field(default_factory=dict)
    """'group/variable' -> long name."""
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """'group/variable' -> names of its dimensions (of /layers always, else as `units`)."""
    provenance: dict[str, str | int] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The first eight digits of `run_id`, with which a sweep ends its folders' names."""
        return self.run_id[:8]

    @property
    def settings(self) -> dict[str, object]:
        """The config as {'section.key': value}, lists as texts with commas."""
        return flat(self.config)

    @property
    def n_rounds(self) -> int:
        """Rounds trained and committed (row 0 not counted)."""
        return max(0, self.committed_rounds - 1)

    def setting(self, key: str, default: object = None) -> object:
        """The value of 'section.key'."""
        section, _, name = key.partition(".")
        return self.config.get(section, {}).get(name, default)


def read_run(
    folder: Path | str, groups: tuple[str, ...] = GROUPS, *, keep_damaged: bool = False, describe: bool = True
) -> RunRecord:
    """Read a run's folder.

    groups: the groups of run.h5 to read (of GROUPS); the others stay empty. describe: units, long names, dimensions.
    Raises InputError for what is no run, a newer schema, or a run of which nothing can be read. With `keep_damaged`
    these give a RunRecord with state 'damaged' and the reason in `problems` (only a folder that does not exist raises).
    A run.h5 that cannot be read is replaced by progress.jsonl where there is one; `problems` says so.
    """
    folder = Path(folder).expanduser()
    if folder.name == "run.h5" and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder} (a run folder); check the path")
    record = RunRecord(path=folder, name=folder.resolve().name)
    try:
        _read_settings(record)
        _read_rounds(record, groups, describe)
    except UserError as error:
        if not keep_damaged:
            raise
        record.problems.append(str(error))
        record.state = "damaged"
    return record


def _read_settings(record: RunRecord) -> None:
    """config, status, name, run_id; what cannot be read becomes a problem."""
    for attribute, reader in (("config", read_config), ("status", read_status)):
        try:
            setattr(record, attribute, reader(record.path))
        except InputError as error:
            record.problems.append(str(error))
    record.name = str(record.setting("experiment.name") or record.name)
    record.run_id = str(record.status.get("run_id") or _identity_in_ini(record.path) or "")


def _identity_in_ini(folder: Path) -> str:
    """The identity that the head of config.ini or request.ini names; "" if there is none."""
    for name in ("config.ini", "request.ini"):
        try:
            with open(folder / name, encoding="utf-8", errors="replace") as file:
                words = file.readline().split()
        except OSError:
            continue
        if words[:2] == ["#", "identity"] and len(words) > 2:
            return words[2]
    return ""


def _read_rounds(record: RunRecord, groups: tuple[str, ...], describe: bool) -> None:
    """Fills the groups from run.h5, else progress.jsonl, and sets the state."""
    file = record.path / "run.h5"
    progress = record.path / "progress.jsonl"
    damage = ""
    if file.is_file():
        damage = _try_log(record, file, groups, describe)
        if not damage:
            record.source = "run.h5"
    elif progress.is_file():
        damage = f"{file} is missing"
    elif not record.status and not (record.path / "request.ini").is_file():
        raise InputError(f"{record.path} has no run.h5; give the folder that `hetlora run` printed")
    if damage and progress.is_file():
        lines = read_progress(progress)
        record.committed_rounds, record.source = len(lines), progress.name if lines else ""
        for group, columns in progress_groups(lines, groups).items():
            setattr(record, group, columns)
        for name, values in (record.layers or {}).items():
            axes = ("round", "layer", "index")[: values.ndim]
            record.dims[f"layers/{name}"] = axes if values.ndim > 1 else ("layer" if name == "name" else name,)
        lost = [group for group in groups if group in ("clients", "provenance")]
        damage += f"; {record.committed_rounds} rounds are read from progress.jsonl instead"
        damage += f", without {', '.join(lost)}" if lost else ""
    elif damage:
        raise InputError(damage)
    wanted = record.setting("experiment.rounds")
    wanted = wanted if isinstance(wanted, int) else None
    record.state, why = state_of(record.path, record.status, record.committed_rounds > 0, wanted)
    if damage and record.state != "running":
        record.state = "damaged"
        damage += f"; `hetlora repair {record.path}` makes the log anew"
    record.problems += [text for text in (damage, why) if text]


def _try_log(record: RunRecord, file: Path, groups: tuple[str, ...], describe: bool) -> str:
    """Reads run.h5 into the record; the text of the damage if that fails. A live file is tried again."""
    attempts = 1 if (record.path / "COMPLETE").is_file() else LIVE_READ_ATTEMPTS
    for attempt in range(attempts):
        try:
            _read_log(record, file, groups, describe)
            return ""
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            for group in GROUPS:
                setattr(record, group, None if group == "layers" else {})
            damage = f"{file} cannot be read as HDF5: {' '.join(str(error).split())}"
            if attempt + 1 < attempts:
                time.sleep(0.05)
    return damage


def _open(file: Path):
    h5py = need("h5py", "data")
    small_cache = {"rdcc_nbytes": 1 << 16, "rdcc_nslots": 101}  # each chunk is read once
    try:
        return h5py.File(file, "r", locking=False, **small_cache)
    except (TypeError, ValueError):  # an HDF5 without this option
        return h5py.File(file, "r", **small_cache)


def _read_log(record: RunRecord, file: Path, groups: tuple[str, ...], describe: bool) -> None:
    with _open(file) as handle:
        wanted = ("schema_name", "schema_version", "run_id", "rank_max", "committed_rounds")
        root = handle.attrs
        attributes = {name: plain(root[name]) for name in wanted if name in root}
        schema = attributes.get("schema_name", "")
        if schema != RUN_SCHEMA or "rounds" not in handle:
            raise InputError(f"{file} is not a run log (schema_name {schema!r}, expected {RUN_SCHEMA!r})")
        record.schema_version = int(attributes.get("schema_version", 0))
        if record.schema_version > SCHEMA_VERSION:
            raise InputError(
                f"{file} has schema version {record.schema_version}, this package reads up to {SCHEMA_VERSION}; "
                "install the hetlora package that belongs to the program that wrote it"
            )
        record.run_id = str(attributes.get("run_id", "")) or record.run_id
        record.rank_max = int(attributes.get("rank_max", 0))
        committed = max(0, int(attributes.get("committed_rounds", 0)))
        for group in groups:
            if group == "provenance" and group in handle:
                texts = handle[group].attrs.items()
                record.provenance = {name: plain(value) for name, value in texts if name != "NX_class"}
            elif group in ("rounds", "slots") or group in handle:
                setattr(record, group, _read_group(record, handle, group, describe))
        _cut(record, committed)


def _read_group(record: RunRecord, handle, group: str, describe: bool) -> Columns:
    """All data sets of a group, whole. By h5py's low-level calls: a thousand runs are opened at once."""
    from h5py import h5d, h5g, h5s

    columns: Columns = {}
    group_id = h5g.open(handle.id, group.encode())
    for name in group_id:
        data = h5d.open(group_id, name)
        kind, stored = _type_of(data, (record.schema_version, group, name))
        values = np.empty(data.shape, kind)
        if values.size:
            data.read(h5s.ALL, h5s.ALL, values, stored)
        text = name.decode()
        if values.dtype.kind == "S":
            values = np.array([one.decode("utf-8", "replace") for one in values.ravel()], object).reshape(values.shape)
        columns[text] = values
        if describe or group == "layers":
            _describe(record, handle[f"{group}/{text}"], f"{group}/{text}")
    return columns


# (schema version, group, variable) -> its type for NumPy and for HDF5: asking each file takes as long as reading it.
_KNOWN_TYPES: dict[tuple, tuple] = {}


def _type_of(data, key: tuple) -> tuple:
    """The type of a data set for NumPy and for HDF5 (None: to be found out). A schema's numbers keep their types."""
    known = _KNOWN_TYPES.get(key)
    if known is None:
        from h5py import h5t

        kind = data.dtype
        if kind.kind not in "if" or key[0] == 0 or key[1] == "layers":
            return kind, None
        known = _KNOWN_TYPES[key] = (kind, h5t.py_create(kind))
    return known


def _describe(record: RunRecord, data, name: str) -> None:
    record.units[name] = str(plain(data.attrs.get("units", "")))
    record.long_names[name] = str(plain(data.attrs.get("long_name", "")))
    own = name.rsplit("/", 1)[-1]
    if data.is_scale:
        record.dims[name] = (own,)
    else:
        record.dims[name] = tuple(d[0].name.rsplit("/", 1)[-1] if len(d) else "" for d in data.dims)


def _cut(record: RunRecord, committed: int) -> None:
    """Leaves rows past the committed rounds out: they belong to a round that was interrupted."""
    lengths = {len(values) for values in record.rounds.values()}
    if lengths and min(lengths) < committed:
        record.problems.append(
            f"{record.path / 'run.h5'} says {committed} committed rounds, but holds {min(lengths)} rows; "
            "what is there is shown"
        )
        committed = min(lengths)
    record.committed_rounds = committed
    record.rounds = {name: values[:committed] for name, values in record.rounds.items()}
    if record.slots:
        record.slots = {name: v if name == "slot" else v[:committed] for name, v in record.slots.items()}
    if record.participation:
        # While the run goes on, columns may be caught with different numbers of rows past the committed ones.
        n_events = min(map(len, record.participation.values()))
        keep = np.flatnonzero(record.participation["round"][:n_events] < committed)
        if any(len(values) != len(keep) for values in record.participation.values()):
            record.participation = {name: values[keep] for name, values in record.participation.items()}
    if record.layers and "round" in record.layers:
        keep = record.layers["round"] < committed
        for name, values in record.layers.items():
            dims = record.dims.get(f"layers/{name}", ())
            if "round" in dims and not keep.all():
                record.layers[name] = np.compress(keep, values, axis=dims.index("round"))


def plain(value: object) -> str | int | float:
    """An attribute of HDF5 as str, int or float."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return ", ".join(str(plain(one)) for one in value.ravel())
    return value.item() if isinstance(value, np.generic) else value
