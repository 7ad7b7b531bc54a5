"""The command line: `tailrace train|resume|plan`.

Commands import what they need when they run, so that `tailrace --help` answers at once. `_errors_as_exit_codes` is the
one place where exceptions become exit codes: 0 good, 1 failed, 2 bad input, 130 interrupted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.display import Display
    from cluster.spec import Spec

app = typer.Typer(
    help="Reinforcement learning for language models on Ray, under a fixed rollout budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich alone takes longer than the 0.5 s that --help may take
    pretty_exceptions_enable=False,
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The run's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one field of the spec: run.seed=1, recipe.0.steps=50."),
]


@app.callback()
def settings(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    context.obj = debug


@app.command()
def train(
    context: typer.Context,
    spec_path: SpecPath,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run is kept; run.directory/run.name if not given.")
    ] = None,
) -> None:
    """Carry out a spec, from its first stage to its last."""
    with _errors_as_exit_codes(context):
        from cluster.launch import train
        from cluster.spec import load_spec

        spec = load_spec(spec_path, overrides)
        directory = run_dir or spec.run_dir
        _carry_out(spec, directory, lambda display: train(spec, directory, display))


@app.command()
def resume(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run that was stopped or failed.")],
) -> None:
    """Go on with a run from its newest checkpoint."""
    with _errors_as_exit_codes(context):
        from cluster.launch import resume
        from cluster.spec import load_spec
        from trainer.types import BadInput

        if not (run_dir / "spec.yaml").is_file():
            raise BadInput(f"{run_dir}: not a run directory, it has no spec.yaml")
        _carry_out(load_spec(run_dir / "spec.yaml"), run_dir, lambda display: resume(run_dir, display))


@app.command()
def plan(
    context: typer.Context,
    spec_path: SpecPath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what a spec means and what this machine lacks for it. Starts nothing; exits 0 also when something lacks."""
    with _errors_as_exit_codes(context):
        from cluster.plan import make_plan
        from cluster.plan_view import show
        from cluster.spec import load_spec

        plan = make_plan(load_spec(spec_path, overrides))
        if as_json:
            typer.echo(plan.as_json())
        else:
            show(plan)


def main() -> None:
    app()


def _carry_out(spec: "Spec", run_dir: Path, work: "Callable[[Display], dict]") -> None:
    """Run `work` under a display, then show its summary. A Ctrl-C leaves with the command that continues the run."""
    from cluster.display import make_display
    from cluster.errors import RunFailed

    display = make_display(spec)
    try:
        summary = work(display)
    except KeyboardInterrupt:
        begun = (run_dir / "spec.yaml").is_file()
        raise KeyboardInterrupt(f"go on with: tailrace resume {run_dir}" if begun else "nothing was started") from None
    except RunFailed as error:
        if (run_dir / "spec.yaml").is_file():
            raise RunFailed(f"{error}\nlogs in {run_dir}/logs; go on with: tailrace resume {run_dir}") from error
        raise
    finally:
        display.close()
    display.summary({**summary, "run_dir": str(run_dir)})


@contextmanager
def _errors_as_exit_codes(context: typer.Context) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # the reader of a pipe left: typer ends that quietly
        raise
    except (Exception, KeyboardInterrupt) as error:
        if context.obj and not isinstance(error, KeyboardInterrupt):
            raise
        code, message = _judge(error)
        typer.secho(message, err=True, fg=None if code == 130 else typer.colors.RED)
        raise typer.Exit(code) from None


def _judge(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an exception."""
    from cluster.errors import RunFailed
    from trainer.types import BadInput

    if isinstance(error, BadInput):
        return 2, str(error)
    if isinstance(error, RunFailed):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted; {error}" if error.args else "interrupted"
    first_line = next(iter(str(error).splitlines()), "")
    return 1, f"{type(error).__name__}: {first_line} (use tailrace --debug for the traceback)"


if __name__ == "__main__":
    main()
