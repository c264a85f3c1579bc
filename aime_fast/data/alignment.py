"""Whether frames answer the actions beside them, or those one row earlier or later."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field


@dataclass(frozen=True)
class Alignment:
    """What was found."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")
    verdict: Annotated[str, Field(pattern="^(agrees|earlier|later|unclear)$")]
