"""Which kinds of knowledge a run asks for: individual (KAR), collective (REKI) or both, and how summaries build on
each other (LIBER)."""

from typing import Literal

from pydantic import BaseModel

from prompts.render import Kind

GROUP_KINDS = (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS)


class KnowledgeConfig(BaseModel, frozen=True, extra="forbid"):
    """What is asked about whom.

    `mode`: `individual` makes a call per sealed partition and per item; `collective` one per group of users or items;
    `mixed` makes the groups' calls first and then, as far as the budget goes, individual ones.

    `cascade`: `none` summarises every partition by itself. `shift` also asks, from a user's second summary on, what is
    new in it (LIBER's interest shift). `summary` does both, and shows every summary the one before it; sources disagree
    whether LIBER's does, and it costs as many waves as the longest history has partitions.
    """

    mode: Literal["individual", "collective", "mixed"] = "individual"
    cascade: Literal["none", "shift", "summary"] = "none"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of calls that are made."""
        kinds: list[Kind] = []
        if self.mode != "individual":
            kinds += GROUP_KINDS
        if self.mode != "collective":
            kinds += [Kind.USER_SUMMARY, Kind.ITEM_FACTS]
            if self.cascade != "none":
                kinds.append(Kind.USER_SHIFT)
        return tuple(kinds)

    @property
    def waves(self) -> bool:
        """Whether some calls can be planned only once others are answered."""
        return Kind.USER_SHIFT in self.kinds
