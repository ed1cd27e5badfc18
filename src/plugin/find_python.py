"""Prints "include folder;shared library" of this Python; says on stderr what is missing (exit code 1)."""

import sys
import sysconfig
from pathlib import Path

variables = sysconfig.get_config_vars()
include = Path(sysconfig.get_path("include"))
if not (include / "Python.h").is_file():
    sys.exit(f"no Python.h in {include}: install python3-dev")
folders = [variables.get("LIBDIR"), variables.get("LIBPL"), f"{sys.base_prefix}/lib"]
names = [variables.get("INSTSONAME"), variables.get("LDLIBRARY")]
found = [
    Path(folder) / name
    for folder in folders
    for name in names
    if folder and name and ".so" in name and (Path(folder) / name).is_file()
]
if not found:
    sys.exit(f"no shared {names[1]} in {folders[0]}: install python3-dev, or a Python made with --enable-shared")
print(f"{include};{found[0]}")
