"""What a user may set of an alignment, validated."""

from __future__ import annotations

from pydantic import Field

from ssd_engine.config import Settings


class AlignSettings(Settings):
    """Settings of one alignment. An unusable value raises `InvalidRequestError`."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every choice that is made, and of the training.")
    refusal: str = Field(
        "I'm sorry, but I can't assist with that.",
        min_length=1,
        description="What the draft learns to say; best the words in which the target itself refuses.",
    )
    recoveries: int = Field(
        10, ge=3, description="Depths at which the answer to each harmful request is turned back, its start among them."
    )
    disguises: int = Field(2, ge=0, description="Disguises in which each harmful request is refused besides.")
    framed_share: float = Field(0.3, ge=0, le=1, description="Share of answers begun for a request in a disguise.")
    agents: bool = Field(
        default=True,
        description="Ask as agents do too: the package's own ordinary requests with tools or instructions, and "
        "harmful ones among these.",
    )
    continued_tokens: int = Field(
        40, ge=0, le=40, description="Most tokens that the target adds to a beginning; they are never written to disk."
    )
    answer_tokens: int = Field(112, ge=1, description="Most tokens of the target's answers to ordinary prompts.")
    validation_share: float = Field(0.05, gt=0, lt=1, description="Share of each set that is kept from training.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    batch_size: int = Field(4, ge=1, description="Examples in one step.")
    learning_rate: float = Field(2e-4, gt=0, description="Highest learning rate; it falls along a cosine.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapter's matrices.")
    checkpoint_steps: int = Field(75, ge=1, description="Steps between two checkpoints and validations.")
    patience: int = Field(4, ge=1, description="Validations without a lower loss after which training stops.")
