"""Settings of groups: what cannot work is refused when it is read."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from augment.groups.config import GroupsConfig


@pytest.mark.parametrize("limit", ["max_users", "max_items"])
def test_a_maximum_below_twice_the_minimum_is_refused_with_both_values(limit: str) -> None:
    with pytest.raises(ValidationError, match=f"{limit} = 19 is less than twice min_size = 10"):
        GroupsConfig(**{"max_users": 40, "max_items": 40, limit: 19, "min_size": 10})
    assert GroupsConfig(**{"max_users": 40, "max_items": 40, limit: 20, "min_size": 10}).min_size == 10


def test_a_text_weight_beside_features_that_have_no_use_for_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="text_weight has no effect"):
        GroupsConfig(features="text", text_weight=0.3)
    assert GroupsConfig(text_weight=0.3).uses_text


def test_an_end_without_a_zone_is_in_utc() -> None:
    assert GroupsConfig(until=datetime(2024, 5, 1)).until == datetime(2024, 5, 1, tzinfo=UTC)
