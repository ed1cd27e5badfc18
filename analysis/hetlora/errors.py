"""Errors a user can mend: one message on stderr, no traceback, and the exit code of the whole project."""


class UserError(Exception):
    """A mistake of the user's or of their files. `exit_code` is what the process ends with."""

    exit_code = 3


class UsageError(UserError):
    """The command line asks for something that does not exist or does not fit together (exit code 2)."""

    exit_code = 2


class InputError(UserError):
    """A file is missing, unreadable or not what it should be (exit code 3)."""

    exit_code = 3


class EnvironmentProblem(UserError):
    """A package, program or device that is needed is not there (exit code 4)."""

    exit_code = 4


def need(module: str, extra: str):
    """Import `module` or say which line installs it.

    `extra` is the optional-dependency group of this package that brings the module.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentProblem(
            f"the Python package {module!r} is needed here and cannot be imported ({error}); "
            f"install it with: pip install './analysis[{extra}]'"
        ) from error
