"""Settings of REKI's groups (section [groups]); free to import, so that a command line can read them."""

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator


class GroupsConfig(BaseModel, frozen=True, extra="forbid"):
    """On which features entities are grouped, how large a group may be, and how many items stand for it."""

    # Who likes what tells tastes apart that no title shows; texts place the items that nobody has met yet.
    features: Literal["cooccurrence", "text", "both"] = "both"
    # Singular vectors of the user x item matrix. More tell smaller circles apart, and follow chance in a sparse log.
    rank: int = Field(64, ge=1)
    # Share of the texts in the squared length of an item's feature; the rest is co-occurrence.
    text_weight: float = Field(0.5, gt=0, lt=1)
    # REKI's own limits on MovieLens-1M: a text about more entities than this says that tastes vary.
    max_users: int = Field(100, ge=2)
    max_items: int = Field(80, ge=2)
    # A call about two users costs as much as one about a hundred. A kind with fewer entities makes one group of them.
    min_size: int = Field(5, ge=1)
    # Members that a prompt names, as REKI's prompts do: enough to show a taste, few enough for a short prompt.
    named_items: int = Field(15, ge=1)
    # Events from then on do not decide who is grouped with whom (None: all count). Knowledge of groups holds from the
    # last event that did, so a set to measure on must begin after it.
    until: datetime | None = None
    # Start of the SVD's iterations. It matters to rounding, and to which of equal singular vectors are kept.
    seed: int = 0
    # Events in memory at once, about 80 bytes each. A longer log is factorised on a stable sample of whole users, and
    # all users are grouped nevertheless, read in parts: each part reads through the log once more.
    max_events: int = Field(20_000_000, ge=1)

    @field_validator("until")
    @classmethod
    def _in_utc(cls, until: datetime | None) -> datetime | None:
        """A time without a zone is in UTC."""
        return until if until is None or until.tzinfo else until.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _a_group_can_be_cut_in_two(self) -> Self:
        for name, most in (("max_users", self.max_users), ("max_items", self.max_items)):
            if most < 2 * self.min_size:
                raise ValueError(
                    f"{name} = {most} is less than twice min_size = {self.min_size}: a group one larger than {name} "
                    "could not be cut into two of at least min_size. Raise the first or lower the second"
                )
        if self.features != "both" and "text_weight" in self.model_fields_set:
            raise ValueError(f"text_weight has no effect with features = {self.features!r}; leave it out")
        return self

    @property
    def uses_text(self) -> bool:
        return self.features != "cooccurrence"

    @property
    def uses_events(self) -> bool:
        """Whether items are compared by who likes them."""
        return self.features != "text"
