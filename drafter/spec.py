"""The `drafter` section of a spec: speculative decoding in the rollout workers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class DrafterSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    method: Literal["none"] = "none"
    """Who proposes tokens for speculative decoding; `none` decodes plainly."""
