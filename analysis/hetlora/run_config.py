"""The settings of a run: config.json of its folder, or the request.ini of a sweep's run that never started."""

import configparser
import json
from pathlib import Path

from hetlora.errors import InputError

Config = dict[str, dict[str, object]]
RESOLVED = "resolved_strategy"


def read_config(folder: Path) -> Config:
    """config.json as section -> key -> value; 'section.key' at top level is understood too.

    Where there is no config.json, request.ini is read; {} where there is neither. InputError if it cannot be read.
    """
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        return _read_request(folder / "request.ini")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not JSON: {error}; its settings are not known") from error
    if not isinstance(raw, dict):
        raise InputError(f"{file} holds no settings; expected an object of sections")
    config: Config = {}
    for key, value in raw.items():
        if key == RESOLVED:  # what the preset's row and the keys of [strategy] come to: no setting of its own
            continue
        if isinstance(value, dict):
            config.setdefault(key, {}).update(value)
        elif "." in key:
            section, name = key.split(".", 1)
            config.setdefault(section, {})[name] = value
    return config


def _read_request(file: Path) -> Config:
    if not file.is_file():
        return {}
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",), strict=False)
    parser.optionxform = str
    try:
        parser.read_string(file.read_text())
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read: {' '.join(str(error).split())}; its settings are not known"
        ) from error
    return {section: {k: _typed(v) for k, v in parser[section].items()} for section in parser.sections()}


def _typed(text: str) -> object:
    """The text of an INI value as config.json would have it, as far as the text alone tells."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def flat(config: Config) -> dict[str, object]:
    """{'section.key': value} of a config; lists become texts with commas, as they are written in INI files."""
    return {f"{section}.{key}": value_text(value) for section, keys in config.items() for key, value in keys.items()}


def value_text(value: object) -> object:
    """A value as a scalar: lists become texts with commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else value
