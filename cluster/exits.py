"""Where exceptions become exit codes: 0 good, 1 failed, 2 bad input, 130 interrupted."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_as_exit_codes(context: typer.Context) -> Iterator[None]:
    """`context.obj`: show tracebacks of unexpected errors."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # the reader of a pipe left: typer ends that quietly
        raise
    except (Exception, KeyboardInterrupt) as error:
        if context.obj and not isinstance(error, KeyboardInterrupt):
            raise
        from cluster.redact import text

        code, message = _judge(error)
        typer.secho(text(message), err=True, fg=None if code == 130 else typer.colors.RED)
        raise typer.Exit(code) from None


def _judge(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an exception."""
    from cluster.errors import RunFailed
    from trainer.types import BadInput

    if isinstance(error, BadInput):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # from wherever a path is first looked at
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, RunFailed):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted; {error}" if error.args else "interrupted"
    first_line = next(iter(str(error).splitlines()), "")
    return 1, f"{type(error).__name__}: {first_line} (use tailrace --debug for the traceback)"
