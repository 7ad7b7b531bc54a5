"""A plan as a person reads it: every number with how it came about."""

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.capacity import gib
from cluster.plan import BudgetPlan, Plan


def show(plan: Plan, console: Console | None = None) -> None:
    console = console or Console()
    console.print(Text.assemble(("tailrace ", "bold cyan"), (plan.name, "bold"), f" in {plan.run_dir}"))
    console.print(Text("  " + " → ".join(plan.stages), "cyan"))
    console.print()
    console.print(_prompts(plan))
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    stages = [(f"stage {index}", text) for index, text in enumerate(plan.recipe)]
    for name, text in (*stages, *_budget_facts(plan), *_cluster_facts(plan)):
        facts.add_row(f"  {name}", Text(text))
    console.print(facts)
    console.print()
    for remark in plan.remarks:
        console.print(Text.assemble(("! ", "yellow"), remark))
    for lack in plan.lacks:
        console.print(Text.assemble(("✗ lacking ", "bold red"), lack))
    if not plan.lacks:
        console.print(Text.assemble(("✓ ", "green"), "nothing is lacking"))


def _prompts(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("prompts")
    table.add_column("train", justify="right")
    table.add_column("held out", justify="right")
    for family, counts in plan.prompts.items():
        table.add_row(Text(family), f"{counts['train']:,}", f"{counts['heldout']:,}")
    if len(plan.prompts) > 1:
        sums = [sum(counts[pool] for counts in plan.prompts.values()) for pool in ("train", "heldout")]
        table.add_row("all", *[f"{number:,}" for number in sums], style="bold")
    return table


def _budget_facts(plan: Plan) -> list[tuple[str, str]]:
    facts = []
    if (b := plan.budget) is not None:
        facts += [
            ("budget", f"{b.rollouts:,} rollouts / {b.epochs:,} epochs = {b.rollouts_per_epoch_mean:,.1f} per epoch, "
                       f"at most {b.rollouts_per_epoch_max:,}"),
            ("groups", _groups(b)),
            ("tokens", f"at most {b.rollouts:,} x {b.tokens_max // b.rollouts:,} = {b.tokens_max:,} in responses"),
        ]  # fmt: skip
    if plan.evaluation_rollouts:
        facts.append(("evaluation", f"{plan.evaluation_rollouts:,} rollouts, outside the budget"))
    if plan.optimizer_steps:
        facts.append(("updates", f"at most {plan.optimizer_steps:,} optimizer steps"))
    return facts


def _groups(b: BudgetPlan) -> str:
    """Sizes, numbers per epoch, visits per prompt."""
    return (
        f"{b.group_rollouts_min:,} to {b.group_rollouts_max:,} rollouts each; at {b.group_rollouts_min:,} each "
        f"{b.groups_per_epoch_mean:,.1f} per epoch, at most {b.groups_per_epoch_max:,}, "
        f"and {b.visits_per_prompt:,.2f} visits per prompt"
    )


def _cluster_facts(plan: Plan) -> list[tuple[str, str]]:
    counted = Counter(tuple(bundle.items()) for bundle in plan.bundles)
    shapes = [
        f"{count} x ({', '.join(f'{amount:g} {name}' for name, amount in bundle if amount)})"
        for bundle, count in counted.items()
    ]
    facts = [("bundles", " + ".join(shapes))]
    for share in plan.memory:
        times = f"{share.count} x " if share.count > 1 else ""
        facts.append((share.holder, f"{times}{gib(share.bytes_each)} {share.where} memory: {share.arithmetic}"))
    if plan.memory:
        facts.append(
            ("memory", f"about {gib(plan.memory_host_bytes)} on the hosts, processes included, activations not")
        )
    return facts
