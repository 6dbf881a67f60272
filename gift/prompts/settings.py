"""The section `prepare` of params.yaml: where prompts come from, and which rows become prompts in which words."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gift.project.sections import Count, Section
from gift.tables.where import Where

Bounds = Annotated[list[float | None], Field(min_length=2, max_length=2, description="[least, most], either null")]
LengthBounds = Annotated[list[int | None], Field(min_length=2, max_length=2, description="[least, most] characters")]

# What the renderer of a chat template takes for itself; such a name would not reach the template.
RENDERER_ARGUMENTS = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


class Filters(Section):
    """Which rows stay, by their columns under our names. All that are given must hold; each has a count."""

    where: Where = Field(default_factory=dict, description="column: a value, or a list of values")
    range: dict[str, Bounds] = Field(default_factory=dict, description="column: [least, most]")
    length: dict[str, LengthBounds] = Field(default_factory=dict, description="column: [least, most] in characters")

    @model_validator(mode="after")
    def bounds_leave_something(self) -> "Filters":
        bounds: dict[str, Any] = {f"range.{name}": each for name, each in self.range.items()}
        bounds |= {f"length.{name}": each for name, each in self.length.items()}
        for name, (least, most) in bounds.items():
            if least is None and most is None:
                raise ValueError(f"{name}: [null, null] bounds nothing; give one of the two, or remove the line")
            if least is not None and most is not None and least > most:
                raise ValueError(f"{name}: [{least:g}, {most:g}]: the least is more than the most; swap them")
        return self


class Decontaminate(Section):
    """Training prompts that share a run of words with a prompt of eval are left out (`prompts/decontamination.py`)."""

    ngram: Annotated[int, Field(ge=3, description="words in a run; 13 is usual, 8 is stricter")] = 13
    max_prompts: Count = Field(10, description="a run in more eval prompts than this is a common phrase, and no match")


class Rows(Section):
    """How the rows of a source become prompts: what `prepare` itself and each entry of `prepare.sources` may say."""

    columns: dict[str, str] = Field(default_factory=dict, description="our name: the source's column, or a.b inside it")
    drop: list[str] = Field(default_factory=list, description="columns of the source to leave out")
    as_text: list[str] = Field(default_factory=list, description="columns, by our names, whose values become texts")
    prompt_template: str | None = None
    filters: Filters = Filters()
    domain: str | None = Field(None, description="a constant for the column `domain`")


class Source(Rows):
    """One source of several."""

    source: str = Field(description="'hub:<dataset id>', or a file, folder or pattern of files")
    hub_config: str | None = None
    split: str | None = Field(None, description="the split of a hub data set")
    num: Count | None = Field(None, description="rows to take; null is all")


class Prepare(Rows):
    """Where prompts come from and how source columns become the prompts table."""

    source: str | None = Field(None, description="'arithmetic', 'hub:<dataset id>', or a file, folder or pattern")
    eval_source: str | None = None
    hub_config: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    sources: list[Source] = Field(default_factory=list, description="several sources for train, in place of `source`")
    eval_sources: list[Source] = Field(default_factory=list, description="sources for eval, with columns of their own")
    system_prompt: str | None = None
    chat: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="variables of the chat template")
    dedup: Literal["rows", "prompts", "normalized"] = "rows"
    decontaminate: Decontaminate | None = None
    num_train: Count | None = None
    num_eval: Count = 200

    @field_validator("chat_template_kwargs")
    @classmethod
    def only_the_templates_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [name for name in value if name in RENDERER_ARGUMENTS]:
            raise ValueError(f"'{taken[0]}' is not the template's but the renderer's; only variables of the template")
        return value

    @model_validator(mode="after")
    def one_way_to_name_sources(self) -> "Prepare":
        if (self.source is None) == (not self.sources):
            raise ValueError("needs either `source` or a list `sources`")
        if self.eval_sources and (self.eval_source or self.eval_split):
            raise ValueError("`eval_sources` stands in place of `eval_source` and `eval_split`; remove those")
        return self
