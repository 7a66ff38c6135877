"""What is the same for every engine."""

from hypothesis import given
from hypothesis import strategies as st

from augment.engine.base import Request, sampling_of_attempt


def test_a_second_attempt_of_a_greedy_call_samples_and_one_of_a_sampled_call_is_cooler() -> None:
    assert sampling_of_attempt(0.0, 9, 1) == (0.7, 1)
    assert sampling_of_attempt(0.8, 9, 1) == (0.4, 10)
    assert Request("k", "p").attempt == 0


@given(temperature=st.floats(0, 2, allow_nan=False), seed=st.integers(0, 1000), attempts=st.integers(2, 6))
def test_the_first_attempt_is_as_configured_and_no_two_are_alike(temperature: float, seed: int, attempts: int) -> None:
    made = [sampling_of_attempt(temperature, seed, attempt) for attempt in range(attempts)]
    assert made[0] == (temperature, seed)
    assert len(set(made)) == attempts
    assert all(t > 0 or temperature < 1e-300 for t, _ in made[1:])
