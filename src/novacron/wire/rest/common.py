"""Words every noun uses: strict models, names, labels, pages, problems."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from novacron.errors import InvalidInput
from novacron.model.identity import (
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    MAX_LABELS,
    NAME_PATTERN,
    check_name,
)


class Strict(BaseModel):
    """Unknown fields are refused: a typing error must not look like success."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="rust-regex", allow_inf_nan=False)


def _legal_name(text: str) -> str:
    try:
        return check_name(text)
    except InvalidInput as wrong:
        raise ValueError(f"is not a legal name: it takes {wrong.reasons[0].remedy}") from wrong


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=NAME_PATTERN),
    AfterValidator(_legal_name),
]
Ref = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=NAME_PATTERN)]
"""An id or a name."""

LabelKey = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)]


def _bound_keys(schema: dict[str, Any]) -> None:
    """Say in the schema that other keys are refused: `patternProperties` alone would let them through."""
    schema["additionalProperties"] = False


Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS, json_schema_extra=_bound_keys)]
Wanted = Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=16, json_schema_extra=_bound_keys)]
"""Labels that something must have, all of them; an empty value: any value."""
Description = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]

Item = TypeVar("Item")


class PageOf(Strict, Generic[Item]):
    """A page of a list, in order of id (birth). `next_cursor`: give it as `cursor` for the next; null: the end."""

    items: list[Item]
    next_cursor: str | None = None


class ReasonOut(Strict):
    code: str
    message: str
    subject: str = ""
    remedy: str = ""


class Problem(Strict):
    """RFC 9457 problem details. `code` is stable, for programs; `reasons` say more, one each."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    instance: str | None = None
    reasons: list[ReasonOut] = []

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "code": "invalid_input",
                    "detail": "memory_mib: must be at least 16",
                    "reasons": [
                        {
                            "code": "field.invalid",
                            "message": "must be at least 16",
                            "subject": "memory_mib",
                            "remedy": "give a number from 16 to 4194304",
                        }
                    ],
                }
            ]
        }
    )


class VmProblem(Strict):
    """Why an object is not as wished, and what to do. refused: what was asked was not done, and it is as it was."""

    code: str
    message: str
    at: datetime.datetime
    remedy: str = ""
    refused: bool = False


def example(data: dict[str, Any]) -> ConfigDict:
    """Model configuration that carries one OpenAPI example."""
    return ConfigDict(json_schema_extra={"examples": [data]})
