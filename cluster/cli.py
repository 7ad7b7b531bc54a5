"""The command line: `tailrace train|resume|plan|evaluate|...`.

Commands import what they need when they run, so that `tailrace --help` answers at once.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_jobs import jobs
from cluster.exits import errors_as_exit_codes

if TYPE_CHECKING:
    from allocator.simulator.report import Report
    from cluster.display import Display
    from cluster.spec import Spec

app = typer.Typer(
    help="Reinforcement learning for language models on Ray, under a fixed rollout budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich alone takes longer than the 0.5 s that --help may take
    pretty_exceptions_enable=False,
)
app.add_typer(jobs)

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
    with errors_as_exit_codes(context):
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
    with errors_as_exit_codes(context):
        from cluster.launch import resume
        from cluster.spec import load_spec
        from trainer.types import BadInput

        if not os.path.isfile(run_dir / "spec.yaml"):
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
    with errors_as_exit_codes(context):
        from cluster.plan import make_plan
        from cluster.plan_view import show
        from cluster.spec import load_spec

        plan = make_plan(load_spec(spec_path, overrides))
        if as_json:
            typer.echo(plan.as_json())
        else:
            show(plan)


@app.command()
def evaluate(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(metavar="RUN_DIR|SPEC", help="A run's directory, or a spec file.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="DIR_OR_NAME",
            help="Model to evaluate; may be repeated, and is then judged against the first. If not given: the run's "
            "models/policy, or model.source of the spec file.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluations as JSON.")] = False,
) -> None:
    """Evaluate models on the held-out prompts of a run: pass@1, pass@k, language loss, expansion or sharpening."""
    with errors_as_exit_codes(context):
        from cluster.evaluate import evaluate, show

        found = evaluate(target, models or [], overrides, quiet=as_json)
        if as_json:
            typer.echo(json.dumps({"models": found}))
        else:
            show(found)


@app.command()
def allocation(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN_DIR/allocation.svg if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers by family as JSON.")] = False,
) -> None:
    """Draw what the budget scheduler did: price, spend, and what it believed of every prompt and gave to it."""
    with errors_as_exit_codes(context):
        from cluster.allocation_plot import plot
        from cluster.checkpoint import RunDirectory

        path = _picture(out or run_dir / "allocation.svg")
        families = plot(RunDirectory(run_dir), path)
        if as_json:
            typer.echo(json.dumps(families))
            return
        for name, row in families.items():
            shares = f"{row['rollouts'] / row['prompts']:.1f} rollouts per prompt"
            typer.echo(f"{name}: {shares}, believed success {row['believed_first']:.2f} -> {row['believed_last']:.2f}")
        typer.echo(f"drawn in {path}")


@app.command()
def speculation(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN_DIR/speculation.svg if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Draw what speculation and the drafter did: bubbles and what was harvested, acceptance, draft tokens chosen."""
    with errors_as_exit_codes(context):
        from cluster.checkpoint import RunDirectory
        from cluster.speculation_plot import plot

        path = _picture(out or run_dir / "speculation.svg")
        figures = plot(RunDirectory(run_dir), path)
        if as_json:
            typer.echo(json.dumps(figures))
            return
        for name, value in figures.items():
            typer.echo(f"{name.replace('_', ' ')}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
        typer.echo(f"drawn in {path}")


@app.command()
def report(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN_DIR/report.html if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's figures as JSON.")] = False,
) -> None:
    """Write one HTML file about a run: learning, budget, speculation, failures, evaluations, time, spec, versions."""
    with errors_as_exit_codes(context):
        from cluster.report import write_report

        figures = write_report(run_dir, out)
        typer.echo(json.dumps(figures) if as_json else f"written to {figures['path']}")


@app.command()
def simulate(
    context: typer.Context,
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="EXPERIMENT...", help="paper, league, static, drift, tokens; or all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each setting.")] = None,
    policies: Annotated[str | None, typer.Option(metavar="A,B", help="Only these policies.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small pools and few rounds: a look in seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as one JSON object.")] = False,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the results as SVG files.")] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a recording (.npz), or the directory of a uniform run.")
    ] = None,
) -> None:
    """Judge the budget scheduler's policies without a model: synthetic prompts, exact optima, the paper's bounds."""
    with errors_as_exit_codes(context):
        from allocator.simulator.experiments import BadSettings, simulate
        from trainer.types import BadInput

        if plots is not None and plots.exists() and not plots.is_dir():
            raise BadInput(f"--plots {plots}: is not a directory")
        reports = []
        try:
            chosen = policies.split(",") if policies is not None else None
            for report in simulate(experiments or [], seeds, chosen, quick, replay):
                reports.append(report)
                if not as_json:
                    _print_tables(report)
                if plots is not None:
                    from allocator.simulator.plots import save_plots

                    for path in save_plots(report, plots):
                        typer.echo(f"drawn in {path}", err=as_json)
        except BadSettings as error:
            raise BadInput(str(error)) from None
        if as_json:
            typer.echo(json.dumps({report.experiment: report.as_dict() for report in reports}))


def main() -> None:
    app()


def _picture(path: Path) -> Path:
    """A file that can be drawn. Raises BadInput."""
    from trainer.types import BadInput

    if path.suffix not in (".svg", ".png", ".pdf") or not path.absolute().parent.is_dir():
        raise BadInput(f"--out {path}: must be an .svg, .png or .pdf file in a directory that exists")
    return path


def _print_tables(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, 110))  # a pipe has no width; tables are not worth much when cut
    for table in report.tables:
        view = Table(title=table.title, caption=table.note, title_justify="left", caption_justify="left", box=None)
        for number, column in enumerate(table.columns):
            view.add_column(column.title, justify="right" if number else "left")
        for row in table.rows:
            view.add_row(*(column.text(row.get(column.key)) for column in table.columns))
        console.print(view, end="\n\n")
    console.print(f"{report.experiment}: {report.seconds:.0f} s", style="dim")


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


if __name__ == "__main__":
    main()
