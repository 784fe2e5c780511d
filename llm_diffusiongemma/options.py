"""What `-o` accepts.

Every field is None unless the user sets it: a default here would override `llm models options set` and
be logged on every turn. What None means is the checkpoint's business (its generation_config), but for
`max_tokens`: the checkpoint's 256 is one canvas and would cut every longer answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import llm
from pydantic import Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from .chat.texts import is_text
from .documents import PREDICATE

DEFAULT_MAX_TOKENS = 8192
# A canvas may be as short as this, and is so many times it.
CANVAS_PIECE = 16
MAX_READS = 64
# What of a draft's positions is renoised where nobody says how much.
DEFAULT_NOISE = 0.5
# What Gemma 4's image processor accepts.
IMAGE_TOKENS = (70, 140, 280, 560, 1120)


def _wrong(words: str) -> PydanticCustomError:
    """An error of just these words, to be read behind the option's name: of a ValueError Pydantic writes "Value
    error, ..."."""
    return PydanticCustomError(PREDICATE, "{words}", {"words": words})


class Options(llm.Options):
    """Generation options. Choices of a moment; where and how a model is loaded is not among them."""

    # `Optional[...]` and not `... | None`: `llm models --options` shows the type's name.
    max_tokens: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=1,
        le=1_000_000,
        description=f"Longest reply in tokens, 1 to 1,000,000, cut exactly there (default {DEFAULT_MAX_TOKENS:,})",
    )
    seed: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=0,
        lt=2**63,
        description="Same seed, same reply on the same device. Without one a seed is drawn and logged",
    )
    max_denoising_steps: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=1,
        le=1000,
        description="Most denoising steps for a canvas, 1 to 1000 (the checkpoint says 48)",
    )
    entropy_bound: Optional[float] = Field(  # noqa: UP045
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Doubt accepted in one step, in nats, above 0: more is faster and riskier (0.1)",
    )
    t_max: Optional[float] = Field(  # noqa: UP045
        default=None,
        ge=0.01,
        le=100,
        description="Temperature at a canvas's first step, above t_min, 0.01 to 100 (0.8)",
    )
    t_min: Optional[float] = Field(  # noqa: UP045
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Temperature towards its last step, 0 or more (0.4)",
    )
    confidence_threshold: Optional[float] = Field(  # noqa: UP045
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="A canvas may stop when its mean entropy is below this, in nats, above 0 (0.005)",
    )
    stability_threshold: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=0,
        le=1000,
        description="... and when its tokens stayed the same for this many steps, 0 to 1000 (1)",
    )
    image_tokens: Optional[int] = Field(  # noqa: UP045
        default=None,
        description="Most soft tokens for an image: 70, 140, 280, 560 or 1120 (the checkpoint's; video: 70)",
    )
    thinking: Optional[bool] = Field(  # noqa: UP045
        default=None,
        description="true: write down a thought before the answer; -R hides it (default false)",
    )

    regex: Optional[str] = Field(  # noqa: UP045
        default=None,
        description="A regular expression that the whole reply is sure to match",
    )
    choices: Optional[str] = Field(  # noqa: UP045
        default=None,
        description="What the reply is sure to be one of: a,b,c or a JSON list of strings",
    )
    probabilities: Optional[bool] = Field(  # noqa: UP045
        default=None,
        description="true: answer with the probability of each of the choices, as JSON, from a single step",
    )
    reads: Optional[int] = Field(  # noqa: UP045
        default=None,
        ge=1,
        le=MAX_READS,
        description=f"Average the probabilities over so many steps, 1 to {MAX_READS}, each with fresh noise (1)",
    )
    fill: Optional[str] = Field(  # noqa: UP045
        default=None,
        description="A text with blanks that is sure to be the reply, filled in: 'Dear {name}, {text...}'",
    )
    fill_json: Optional[bool] = Field(  # noqa: UP045
        default=None,
        description="true: reply with what was filled in, by name, as JSON",
    )

    draft: Optional[str] = Field(  # noqa: UP045
        default=None,
        description="A text that the reply begins as, in place of pure noise",
    )
    noise: Optional[float] = Field(  # noqa: UP045
        default=None,
        ge=0,
        le=1,
        description=f"The share of the draft that is noise at first, 0 to 1 ({DEFAULT_NOISE})",
    )
    canvas_length: Optional[int] = Field(  # noqa: UP045
        default=None,
        description=f"Tokens of a canvas, a multiple of {CANVAS_PIECE} up to the checkpoint's (256)",
    )
    stop_at_end: Optional[bool] = Field(  # noqa: UP045
        default=None,
        description="true: a canvas may stop when all is sure up to its end of text, whatever is behind (false)",
    )

    watch: Optional[bool] = Field(  # noqa: UP045
        default=None,
        description="Show the canvas on the terminal while it converges (default: if standard output is one, too)",
    )
    replay: Optional[str] = Field(  # noqa: UP045
        default=None,
        description="A file for a page that shows every denoising step of the reply, such as out.html",
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        # From Python it may as well be a list; llm logs options as JSON.
        return json.dumps(value) if isinstance(value, list) else value

    @field_validator("replay", mode="before")
    @classmethod
    def _is_a_file(cls, value: object) -> object:
        # From Python it may as well be a path; llm logs options as JSON.
        named = str(value) if isinstance(value, Path | bool) else value
        if named == "-":
            raise _wrong("must be the name of a file, such as out.html: standard output is for the reply")
        # A file of that name is not what somebody means who says so.
        if isinstance(named, str) and (named.strip().lower() in ("", "true", "false") or "\0" in named):
            raise _wrong("must be the name of a file, such as out.html")
        return named

    @field_validator("watch", "thinking", "probabilities", "fill_json", "stop_at_end", mode="wrap")
    @classmethod
    def _is_a_boolean(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            raise _wrong("must be true or false") from error

    @field_validator("draft", mode="before")
    @classmethod
    def _is_written(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise _wrong('must be a text, such as the reply before: -o draft "$(llm logs -r)"')
        if isinstance(value, str) and not is_text(value):
            raise _wrong("holds bytes that are no valid UTF-8. Convert it first")
        return value

    @field_validator("image_tokens")
    @classmethod
    def _is_a_budget(cls, value: int | None) -> int | None:
        if value is not None and value not in IMAGE_TOKENS:
            raise _wrong(f"must be one of {', '.join(map(str, IMAGE_TOKENS))}")
        return value

    @field_validator("canvas_length")
    @classmethod
    def _is_in_pieces(cls, value: int | None) -> int | None:
        if value is not None and (value < CANVAS_PIECE or value % CANVAS_PIECE):
            raise _wrong(f"must be a multiple of {CANVAS_PIECE}, from {CANVAS_PIECE} up")
        return value

    @field_validator("t_min")
    @classmethod
    def _is_below_t_max(cls, value: float | None, info: ValidationInfo) -> float | None:
        highest = info.data.get("t_max")
        if value is not None and highest is not None and value >= highest:
            raise _wrong(f"must be below t_max, which is {highest}")
        return value

    # A validator is shown the fields before its own, less those that were refused themselves.

    @field_validator("probabilities")
    @classmethod
    def _are_those_of_an_answer(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("choices", "") is None:
            raise _wrong("are those of choices: name them, as with -o choices 'yes,no'")
        if value and info.data.get("thinking"):
            raise _wrong("are those of an answer without a thought: set -o thinking false")
        return value

    @field_validator("reads")
    @classmethod
    def _are_of_probabilities(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("probabilities", True):
            raise _wrong("are for probabilities of choices: add -o probabilities true")
        return value

    @field_validator("fill_json")
    @classmethod
    def _is_of_blanks(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("fill", "") is None:
            raise _wrong("is for a text with blanks: give it, as with -o fill 'Dear {name},'")
        return value

    @field_validator("draft")
    @classmethod
    def _decides_nothing(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("probabilities"):
            raise _wrong("would decide the probabilities, which come from pure noise: give only one of both")
        return value

    @field_validator("noise")
    @classmethod
    def _is_that_of_a_draft(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("draft", "") is None:
            raise _wrong("is that of a draft: give one with -o draft")
        return value

    @field_validator("replay")
    @classmethod
    def _has_steps(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("probabilities"):
            raise _wrong("shows steps that follow on each other, and a decision has none: leave it out")
        return value
