"""How a run ends badly, apart from what the user gave wrong (`trainer.types.BadInput`)."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says what failed and where the run was left. The command line exits 1."""


class ActorLost(RunFailed):
    """A process of the run died or does not answer. What it held is in the newest checkpoint and stored rollouts: the
    run can go back there with new actors."""


class NoRoom(ActorLost):
    """The cluster cannot hold the run's bundles; nodes may be on their way."""
