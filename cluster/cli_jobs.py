"""The commands that work with a cluster from outside, `tailrace submit|status|logs|stop|list`, and `doctor`."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.exits import errors_as_exit_codes

if TYPE_CHECKING:
    from cluster.doctor import Finding
    from cluster.jobs import Job, Jobs

jobs = typer.Typer()

AddressOption = typer.Option(
    metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="Ray's dashboard, for example http://127.0.0.1:8265."
)
Address = Annotated[str, AddressOption]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@jobs.command()
def submit(
    context: typer.Context,
    spec_path: Annotated[Path, typer.Argument(metavar="SPEC", help="The run's YAML file.")],
    address: Address,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one field of the spec.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where the run directory is copied to after each checkpoint: s3://, gs://, ..."
        ),
    ] = None,
    code: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="File or directory that the reward module imports; may be repeated."),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Attempts after a crash, each from the newest checkpoint.")] = 3,
    queue_s: Annotated[
        float,
        typer.Option(min=1, max=604800, help="Longest wait for room at a start (limits.queue_timeout_s)."),
    ] = 86400,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the log until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand a run to a Ray cluster. A run that was stopped or failed there goes on from its newest checkpoint."""
    with errors_as_exit_codes(context):
        from cluster.jobs import Jobs
        from cluster.spec import load_spec

        spec = load_spec(spec_path, overrides)
        server = Jobs(address)
        job, remark = server.submit(spec, retries, queue_s, storage, code or [])
        if remark:
            typer.secho(remark, err=True, fg=typer.colors.YELLOW)
        typer.echo(json.dumps(job.as_dict()) if as_json else f"submitted {job.submission}; run directory {job.run_dir}")
        if follow:
            _follow(server, job)


@jobs.command()
def status(context: typer.Context, run: Run, address: Address, as_json: AsJson = False) -> None:
    """Say how a submitted run is, and what it waits for."""
    with errors_as_exit_codes(context):
        from cluster.jobs import Jobs

        server = Jobs(address)
        job = server.find(run)
        waits, tail = server.waits_for(job), server.logs(job).splitlines()[-1:]
        if as_json:
            typer.echo(json.dumps({**job.as_dict(), "waits_for": waits, "last_line": "".join(tail)}))
            return
        typer.echo(_line(job))
        for text in filter(None, (waits, *tail)):
            typer.echo(f"  {text}")


@jobs.command()
def logs(
    context: typer.Context,
    run: Run,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print until the run ends, exit as the run does.")
    ] = False,
) -> None:
    """Print what a submitted run has printed."""
    with errors_as_exit_codes(context):
        from cluster.jobs import Jobs

        server = Jobs(address)
        job = server.find(run)
        if follow:
            _follow(server, job)
        typer.echo(server.logs(job), nl=False)


@jobs.command()
def stop(context: typer.Context, run: Run, address: Address) -> None:
    """End a submitted run with a checkpoint; waits for it. Submitted again, it goes on from there."""
    with errors_as_exit_codes(context):
        from cluster.jobs import Jobs

        server = Jobs(address)
        job = server.find(run)
        if not job.ended:
            typer.echo(f"{run}: ends at the next safe point, with a checkpoint; at most {job.stop_wait_s:g} s")
            job = server.stop(job)
        typer.echo(_line(job))


@jobs.command("list")
def list_(context: typer.Context, address: Address, as_json: AsJson = False) -> None:
    """List the runs of a cluster, the newest first, each with its newest job."""
    with errors_as_exit_codes(context):
        from cluster.jobs import Jobs

        server = Jobs(address)
        newest = list({job.run: job for job in reversed(server.all())}.values())[::-1]
        if as_json:
            typer.echo(json.dumps([{**job.as_dict(), "waits_for": server.waits_for(job)} for job in newest]))
            return
        for job in newest:
            waits = server.waits_for(job)
            typer.echo(_line(job) + (f"; {waits}" if waits else ""))


@jobs.command()
def doctor(
    context: typer.Context,
    address: Annotated[str | None, AddressOption] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, or every node of a cluster, for all that tailrace needs; exits 1 when something fails."""
    with errors_as_exit_codes(context):
        from cluster.doctor import examine, examine_cluster

        found = {"this machine": examine()} if address is None else examine_cluster(address)
        if as_json:
            typer.echo(json.dumps({place: [finding.as_dict() for finding in list_] for place, list_ in found.items()}))
        else:
            for place, findings in found.items():
                _show(place, findings)
        if any(finding.level == "fail" for findings in found.values() for finding in findings):
            raise typer.Exit(1)


def _follow(server: "Jobs", job: "Job") -> None:
    """Print the job's log until it ends, then leave as the run did."""
    from cluster.jobs import exit_code

    try:
        for text in server.follow(job):
            typer.echo(text, nl=False)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the run goes on; end it with: tailrace stop {job.run}") from None
    job = server.ended(job)
    typer.echo(_line(job))
    raise typer.Exit(exit_code(job))


def _line(job: "Job") -> str:
    took = (job.ended_s or time.time()) - job.submitted_s
    return f"{job.run}: {job.status.lower()} after {took:.0f} s, job {job.submission}, in {job.run_dir}" + (
        f"; {job.reason}" if job.reason else ""
    )


def _show(place: str, findings: "list[Finding]") -> None:
    colors = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    typer.secho(place, bold=True)
    for finding in findings:
        mark = typer.style(f"{finding.level:4}", fg=colors[finding.level])
        typer.echo(f"  {mark}  {finding.name}: {finding.found}")
        if finding.mend:
            typer.echo(f"        mend: {finding.mend}")
