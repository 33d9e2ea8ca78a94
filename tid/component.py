"""The decorator of everything that a YAML's ``_target_`` names."""

from functools import partial

from pydantic.dataclasses import dataclass

# A component is a frozen dataclass whose annotations are checked when it is built: a wrong type, a
# value out of its `Annotated[..., Field(ge=...)]` range, a missing or an unknown argument raises
# pydantic.ValidationError, which the command line reports by YAML key. Defaults live in YAML.
component = partial(dataclass, frozen=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
