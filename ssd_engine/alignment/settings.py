"""What a user may set of an alignment, validated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssd_engine.config import Settings

Writer = Literal["target", "draft"]


class AlignSettings(Settings):
    """Settings of one alignment. An unusable value raises `InvalidRequestError`."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every choice that is made, and of the training.")
    refusal: str = Field(
        "I'm sorry, but I can't help with that.",
        min_length=1,
        description="What the draft learns to say at once; best as the target itself refuses. A sentence that fits the "
        "request may follow.",
    )
    stop: str = Field(
        "I have to stop here: I can't help with that.",
        min_length=1,
        description="What it learns to say in the midst of an answer, after '…' and a blank line.",
    )
    recoveries: int = Field(
        4, ge=3, description="Depths at which the answer to each harmful request is turned back, its start among them."
    )
    beginnings: int = Field(
        1, ge=1, description="Begun answers to each harmful request and each look-alike, in styles of their own."
    )
    starts: int = Field(
        12, ge=0, description="Further depths at which the first token of that is learned: it costs little."
    )
    disguises: int = Field(1, ge=0, description="Disguises in which each harmful request is refused besides.")
    framed_share: float = Field(0.3, ge=0, le=1, description="Share of begun answers to a request in a disguise.")
    turned_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of requests, harmful and harmless, also asked with a begun answer in an earlier turn, a "
        "document or a tool's result, or after another question.",
    )
    agents: bool = Field(
        default=True,
        description="Ask as agents do too: the package's own ordinary requests with tools or instructions, and "
        "harmful ones among these.",
    )
    own_requests: bool = Field(
        default=True,
        description="Refuse the package's own harmful requests too: in the words of look-alikes, and in other "
        "languages than English.",
    )
    writer: Writer = Field(
        "target",
        description="Model that carries on beginnings and answers harmless prompts; the draft, without an adapter, is "
        "faster, and then learns to agree with what it said before. Requests with instructions or tools are always "
        "answered by the target.",
    )
    continued_tokens: int = Field(
        120,
        ge=0,
        le=500,
        description="Most tokens that the writer adds to a beginning; they are never written to disk.",
    )
    answer_tokens: int = Field(112, ge=1, description="Most tokens of the writer's answers to ordinary prompts.")
    validation_share: float = Field(0.05, gt=0, lt=1, description="Share of each set that is kept from training.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    batch_size: int = Field(8, ge=1, description="Examples in one step.")
    learning_rate: float = Field(4e-4, gt=0, description="Highest learning rate; it falls along a cosine.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapter's matrices.")
    trained_layers: int | None = Field(
        None, ge=1, description="Train the last so many layers alone, which is faster. None: all."
    )
    checkpoint_steps: int = Field(75, ge=1, description="Steps between two checkpoints and validations.")
    patience: int = Field(4, ge=1, description="Validations without a lower loss after which training stops.")
    probe_layer: int | None = Field(
        None, ge=1, description="Layer whose output the probe reads, counted from 1. None: three quarters up."
    )
    probe_examples: int = Field(
        600, ge=2, description="Most examples that the probe reads to learn from, drawn at random."
    )
    false_alarm_rate: float = Field(
        0.01, ge=0, le=1, description="Share of places in harmless answers at which the probe may raise an alarm."
    )
