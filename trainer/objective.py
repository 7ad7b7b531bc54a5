"""The spec section `learner.objective`: orthogonal choices, and the named presets that fill them.

Formulas stand with the functions that compute them: trainer/advantages.py, trainer/objectives.py.
"""

import difflib
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trainer.section import Section

PRESETS: dict[str, dict[str, Any]] = {
    "rgra": {},
    # arXiv 2603.18756 as printed: Eq. 2, section on the set-up.
    "rgra_paper": {"advantage": "z_score", "reduction": "sequence_mean", "kl": "k3", "kl_coefficient": 0.005},
    # Eq. 1 of the same paper (arXiv 2402.03300), so that the two differ in ratio and clipping only.
    "grpo": {
        "advantage": "z_score", "ratio": "token_clip", "reduction": "sequence_mean", "kl": "k3",
        "kl_coefficient": 0.005,
    },
    "grpo_pos": {
        "advantage": "z_score", "sign": "positive", "ratio": "token_clip", "reduction": "sequence_mean", "kl": "k3",
        "kl_coefficient": 0.005,
    },
    "dr_grpo": {"advantage": "group_mean", "ratio": "token_clip", "reduction": "fixed_length"},  # arXiv 2503.20783
    # arXiv 2503.14476, all but the resampling: that is the allocator's (`policy: dapo`).
    "dapo": {
        "advantage": "z_score", "ratio": "token_clip", "clip_high": 0.28, "reduction": "token_mean",
        "overlong_share": 0.2, "overlong_penalty": 1.0,
    },
    "rloo": {"advantage": "leave_one_out", "reduction": "fixed_length"},  # arXiv 2402.14740
    "raft": {"advantage": "best", "reduction": "sequence_mean"},
    "reinforce": {"advantage": "raw", "reduction": "sequence_mean", "kl": "k3", "kl_coefficient": 0.005},
    "gspo": {  # arXiv 2507.18071
        "advantage": "z_score", "ratio": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "reduction": "sequence_mean",
    },
    "cispo": {  # arXiv 2506.13585; the upper bound only
        "advantage": "z_score", "ratio": "cispo", "clip_low": 1.0, "clip_high": 5.0, "reduction": "token_mean",
    },
    "maxrl": {"advantage": "maxrl", "reduction": "fixed_length"},  # arXiv 2602.02710
    "cero_paper": {  # arXiv 2606.05606
        "advantage": "z_score", "advantage_clip": 5.0, "ratio": "dual_clip", "clip_high": 0.28, "dual_clip": 10.0,
        "reduction": "token_mean", "mismatch": "tis", "mismatch_high": 2.0,
    },
}  # fmt: skip


class ObjectiveSpec(Section):
    name: Literal[
        "rgra", "rgra_paper", "grpo", "grpo_pos", "dr_grpo", "dapo", "rloo", "raft", "reinforce", "gspo", "cispo",
        "maxrl", "cero_paper",
    ] = "rgra"  # fmt: skip
    """Preset: what the other fields are unless they are given. `rgra` is REINFORCE with a group-relative advantage,
    without ratio and clipping, in the form that keeps its meaning under groups of unequal size; `rgra_paper` and
    `cero_paper` are as printed."""
    advantage: Literal[
        "leave_one_out", "group_mean", "z_score", "batch_z", "maxrl", "pass_at_k", "history", "shrinkage", "raw", "best"
    ] = "leave_one_out"
    """What a reward is compared with: the mean of its siblings (`leave_one_out`), of its group (`group_mean`), that
    over the group's or the batch's deviation (`z_score`, `batch_z`) or over the mean (`maxrl`), the group's pass@k
    (`pass_at_k`), what the allocator believed of the prompt (`history`), a mixture of siblings and other prompts
    (`shrinkage`), nothing (`raw`); `best` keeps the group's best response alone."""
    pass_k: int = Field(default=4, ge=2, le=10_000)
    """The k of `pass_at_k`."""
    advantage_clip: float | None = Field(default=None, gt=0)
    """Advantages are cut to [-advantage_clip, advantage_clip]; not if not given."""
    sign: Literal["all", "positive"] = "all"
    """`positive` drops responses below their baseline: max(A, 0)."""
    ratio: Literal["none", "token_clip", "dual_clip", "gspo", "cispo"] = "none"
    """Use of pi / pi_old: none, clipped by token (PPO, GRPO; with clip_high > clip_low clip-higher), the same with a
    bound for A < 0 (`dual_clip`), clipped by response (`gspo`), or a clipped constant weight (`cispo`)."""
    clip_low: float = Field(default=0.2, gt=0, le=1)
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1)
    """`dual_clip`: a response with A < 0 costs at most dual_clip x |A| per token."""
    reduction: Literal["prompt_mean", "sequence_mean", "token_mean", "fixed_length"] = "prompt_mean"
    """What is averaged with equal weight over the whole batch: prompts, responses, tokens, or responses with their
    tokens added up and divided by rollout.max_response_tokens."""
    kl: Literal["none", "k1_reward", "k2", "k3"] = "none"
    """Divergence from the policy that the stage began with: as a loss by the estimator k2 or k3, or k1 taken off the
    reward. Costs a second copy of the weights per rank and a forward pass."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of `kl`."""
    mismatch: Literal["none", "tis", "mis"] = "none"
    """Weight pi_learner / pi_engine, for engines that round otherwise or serve older weights: truncated to the bounds
    (`tis`) or zero outside of them (`mis`)."""
    mismatch_level: Literal["token", "sequence"] = "token"
    """The weight of a token is its own ratio, or the product over its response."""
    mismatch_low: float = Field(default=0.0, ge=0, lt=1)
    """Lower bound of the weight."""
    mismatch_high: float = Field(default=2.0, gt=1)
    """Upper bound of the weight."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy of next-token distributions, as a bonus."""
    overlong_share: float = Field(default=0.0, ge=0, le=1)
    """Last part of rollout.max_response_tokens in which the reward falls linearly by overlong_penalty (DAPO)."""
    overlong_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of a response of full length."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("name", "rgra")
        if not isinstance(name, str) or name not in PRESETS:
            near = difflib.get_close_matches(str(name).lower().replace("-", "_"), PRESETS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"name: there is no preset {str(name)[:40]!r}{hint} (known: {', '.join(PRESETS)})")
        filled = {**PRESETS[name], **data}
        # Taking one half of a pair back takes back what the preset has put beside it.
        for field, beside, nothing in (
            ("kl", "kl_coefficient", "none"), ("overlong_share", "overlong_penalty", 0),
        ):  # fmt: skip
            if data.get(field) == nothing and beside not in data:
                filled[beside] = 0
            if data.get(beside) == 0 and field not in data:
                filled[field] = nothing
        return filled

    @property
    def has_loss_of_its_own(self) -> bool:
        """Whether responses without an advantage have a gradient all the same."""
        return self.kl in ("k2", "k3") or self.entropy_coefficient > 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        clips = self.ratio != "none"
        for used, fields, without in [
            (clips, ("clip_low", "clip_high"), "ratio: none"),
            (self.ratio == "dual_clip", ("dual_clip",), f"ratio: {self.ratio}"),
            (self.advantage == "pass_at_k", ("pass_k",), f"advantage: {self.advantage}"),
            (self.mismatch != "none", ("mismatch_level", "mismatch_low", "mismatch_high"), "mismatch: none"),
        ]:
            for field in fields if not used else ():
                known = (type(self).model_fields[field].default, PRESETS[self.name].get(field))
                if getattr(self, field) not in known:
                    raise ValueError(f"{field} = {getattr(self, field)} has no effect with {without}")
        shaped = [name for name, used in (("kl: k1_reward", self.kl == "k1_reward"),
                                          ("overlong_penalty", self.overlong_penalty > 0)) if used]  # fmt: skip
        if shaped and self.advantage in ("maxrl", "pass_at_k", "best"):
            raise ValueError(
                f"advantage: {self.advantage} tells right from wrong by the reward itself, which {shaped[0]} changes"
            )
        if self.sign == "positive" and self.advantage in ("raw", "best") and not shaped:
            raise ValueError(f"sign: positive has no effect on advantage: {self.advantage}, which is never negative")
        if self.ratio == "gspo" and self.reduction != "sequence_mean":
            raise ValueError(
                f"ratio: gspo has one ratio per response, and reduction: {self.reduction} would weigh it by the "
                "response's tokens; it needs reduction: sequence_mean"
            )
        if (self.kl == "none") != (self.kl_coefficient == 0):
            raise ValueError(f"kl: {self.kl} and kl_coefficient: {self.kl_coefficient} contradict each other")
        if bool(self.overlong_share) != bool(self.overlong_penalty):
            raise ValueError("overlong_share and overlong_penalty need each other")
        return self
