"""What params.yaml says of policies: the section `base`, and `update.lora`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gift.project.sections import Count, Section


class Base(Section):
    """The starting policy: 'arithmetic' (made here), a Hugging Face hub id, or a local folder."""

    model: str
    revision: str | None = None


class Lora(Section):
    """A PEFT adapter that trains in place of the whole model, in PEFT's words.

    There is no dropout: the log-prob of a token would be another one at every look, and the update compares them. There
    is no `bias` and no `modules_to_save`: they change the base model, which is the reference with the adapter off.
    """

    r: Annotated[int, Field(ge=1, le=512, description="the rank; vLLM knows none above 512")]
    lora_alpha: Count = Field(description="the adapter's scale: its output is multiplied by lora_alpha / r")
    target_modules: Literal["all-linear"] | list[str] = "all-linear"

    @field_validator("target_modules", mode="plain")
    @classmethod
    def one_word_or_names(cls, value: Any) -> Any:
        names = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
        if value != "all-linear" and not (names and len(set(value)) == len(value)):
            raise ValueError("must be all-linear, or a list of different names of modules, such as [q_proj, v_proj]")
        return value
