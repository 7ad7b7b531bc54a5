"""Starting and resuming runs: everything around the driver. Checks the user's input first, then starts actors, and
turns Ctrl-C and SIGTERM into a request that the driver hears between phases.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from actors.seeds import derive_seed
from cluster import redact
from cluster.checkpoint import RunDirectory, write_atomically
from cluster.display import Display
from cluster.driver import Driver
from cluster.errors import ActorLost, NoRoom
from cluster.heads import prepare_head
from cluster.metrics import Metrics, announced
from cluster.placement import Cluster
from cluster.remarks import objective_remarks
from cluster.sinks import Sinks, check_sinks
from cluster.spec import Spec, dump_spec, load_spec
from cluster.stages import check_solutions, check_starts
from trainer.models import load_config, load_tokenizer, prepare_model
from trainer.tasks import Pools, build_pools
from trainer.types import BadInput
from trainer.verifiers import Grader


def train(spec: Spec, run_dir: Path, display: Display) -> dict[str, Any]:
    """Carry out a spec from its first stage; gives what is written to summary.json.

    Raises BadInput before anything is started, RunFailed when the run cannot go on, KeyboardInterrupt after Ctrl-C or
    SIGTERM, when a checkpoint has been written.
    """
    began = time.perf_counter()
    run = RunDirectory(run_dir)
    _refuse_foreign(run, spec)
    _hush()
    with run.claimed(), _logs_redacted(run):
        return _carry_out(spec, run, display, began)


def resume(run_dir: Path, display: Display) -> dict[str, Any]:
    """Continue a run from its newest checkpoint. Raises as `train` does."""
    began = time.perf_counter()
    run = RunDirectory(run_dir)
    spec = load_spec(run.path / "spec.yaml")
    if (run.path / "summary.json").is_file():
        raise BadInput(f"{run.path}: this run is finished, there is nothing to resume")
    _hush()
    with run.claimed(), _logs_redacted(run):
        run.mend_lines()
        return _carry_out(spec, run, display, began)


class Prepared:
    """What a run needs before any actor starts; building it finds every fault in the user's input."""

    def __init__(self, spec: Spec, run: RunDirectory) -> None:
        self.stood = False
        """Whether this process has had all actors of the run ready once: nodes that were there may come again."""
        gpu = spec.cluster.gpus_per_rollout_worker or spec.cluster.gpus_per_learner_rank
        self.dtype = spec.model.dtype if spec.model.dtype != "auto" else "bfloat16" if gpu else "float32"
        start = run.models / "start"
        self.model_dir = str(prepare_model(spec.model, start, derive_seed(spec.run.seed, "model") % 2**32, self.dtype))
        check_sinks(spec.run.sinks)
        Grader(spec.task)
        longest = spec.model.context_tokens - spec.rollout.max_response_tokens
        tokenizer = load_tokenizer(Path(self.model_dir))
        self.pools: Pools = build_pools(spec.task, tokenizer, longest)
        check_solutions(spec, self.pools.train, tokenizer)
        config = load_config(self.model_dir)
        self.vocabulary: int = config.get_text_config().vocab_size
        check_starts(spec, run, config)
        self.head_dir = prepare_head(spec, Path(self.model_dir), self.pools, tokenizer, start)


def _refuse_foreign(run: RunDirectory, spec: Spec) -> None:
    """A run directory belongs to one spec, and `train` starts a run only once."""
    path = run.path / "spec.yaml"
    if not path.is_file():
        return
    if path.read_bytes() != dump_spec(spec).encode():
        raise BadInput(f"{run.path}: this run directory belongs to another spec; choose another run.name or --run-dir")
    if (run.path / "summary.json").is_file():
        raise BadInput(f"{run.path}: this run is finished; choose another run.name or --run-dir to run it again")
    raise BadInput(f"{run.path}: this run was started before; continue it with: tailrace resume {run.path}")


def _carry_out(spec: Spec, run: RunDirectory, display: Display, began: float) -> dict[str, Any]:
    prepared = Prepared(spec, run)
    with (
        _logged_to(run.logs / "driver.log"),
        contextlib.closing(_metrics(spec)) as metrics,
        announced(spec.run.name, metrics.url),
    ):
        display.note(f"metrics at {metrics.url}")
        for remark in objective_remarks(spec):
            display.note(remark)
        for left in range(spec.limits.restarts, -1, -1):
            try:
                return _with_actors(spec, run, prepared, metrics, display, began)
            except ActorLost as error:
                # What has not stood has nothing to go back to; the next start would fail like this one.
                stood = prepared.stood if isinstance(error, NoRoom) else (run.path / "spec.yaml").is_file()
                if not left or not stood:
                    raise
                run.mend_lines()
                run.journal("restarted", reason=str(error), left=left - 1)
                metrics.restarted()
                display.note(f"{error}; goes back to the newest checkpoint with new actors")
                began = time.perf_counter()
    raise AssertionError("the last attempt returns or raises")


def _with_actors(
    spec: Spec, run: RunDirectory, prepared: Prepared, metrics: Metrics, display: Display, began: float
) -> dict[str, Any]:
    """The run from its newest checkpoint, or from its beginning, with actors of its own."""
    with Cluster(spec, run, prepared.model_dir, prepared.dtype, prepared.head_dir) as cluster:
        display.stage("start", 1, "cluster")
        actors = cluster.start({"train": prepared.pools.train, "heldout": prepared.pools.heldout})
        prepared.stood = True
        display.advance(1)
        # Only now the directory belongs to this spec: a start that failed may be tried again with another one.
        if (run.path / "spec.yaml").is_file():
            run.journal("run_resumed")
        else:
            write_atomically(run.path / "spec.yaml", dump_spec(spec))
            run.journal("run_started", name=spec.run.name, seed=spec.run.seed)
        with _stop_on_signals(display) as stop, contextlib.closing(Sinks(spec.run.sinks, run, spec.run.name)) as sinks:
            return Driver(
                spec, run, prepared.pools, prepared.vocabulary, actors, metrics, sinks, display, stop.is_set, began
            ).run_stages()


def _hush() -> None:
    """Libraries do not talk into the display: warnings go where their logs go, progress bars nowhere."""
    logging.captureWarnings(True)
    disable_progress_bar()


@contextlib.contextmanager
def _logs_redacted(run: RunDirectory) -> Iterator[None]:
    """What actors' libraries print goes into their logs as it is, also when they crash; its secrets leave the directory
    with the actors."""
    try:
        yield
    finally:
        for path in filter(Path.is_file, run.logs.glob("*.log")):
            beside = path.with_name(f".{path.name}.tmp")
            try:
                redact.copy(path, beside)
                beside.replace(path)
            except OSError as error:  # a full disk; what the run came to counts more
                logging.warning("%s may hold secrets, and cannot be written again: %s", path, error)


@contextlib.contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """A process may carry out several runs, one after another; each has a log of its own."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(redact.RedactingFormatter())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _metrics(spec: Spec) -> Metrics:
    host, port = spec.cluster.metrics_host, spec.cluster.metrics_port
    try:
        return Metrics(port, spec.allocator, host)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that cannot be one
        raise BadInput(f"cluster.metrics_host = {host}, cluster.metrics_port = {port}: {error}") from None


@contextlib.contextmanager
def _stop_on_signals(display: Display) -> Iterator[threading.Event]:
    """Turns SIGINT and SIGTERM into an event that the driver looks at between phases; a second one ends it at once."""
    stop = threading.Event()

    def request(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        display.note("stopping at the next safe point, with a checkpoint; once more ends at once, without")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
