"""LIBER's fusion against its formula, one user and one text at a time."""

import numpy as np
import pytest
import torch

from adapters.fusion import InterestFusion
from adapters.texts import Partitions
from warehouse.errors import ConfigError, InputError

DIM, CANDIDATE = 6, 5


def shaken(fusion: InterestFusion, seed: int = 0) -> InterestFusion:
    """With random weights everywhere: queries, gains and offsets begin at zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_(std=0.7)
    return fusion


def users(b: int = 7, p: int = 4, seed: int = 0) -> Partitions:
    """Users with 0 to p partitions, of which some lack a summary or a shift; nan stands where there is nothing."""
    rng = np.random.default_rng(seed)
    has_summary, has_shift = rng.random((b, p)) < 0.7, rng.random((b, p)) < 0.5
    has_summary[0], has_shift[0] = False, False
    has_summary[1, 0] = has_shift[1, 0] = True
    texts = rng.normal(size=(2, b, p, DIM)).astype(np.float32)
    texts[0][~has_summary], texts[1][~has_shift] = np.nan, np.nan
    age = rng.exponential(100.0, (b, p)).astype(np.float32)
    age[~(has_summary | has_shift)] = np.nan
    columns = (texts[0], texts[1], has_summary, has_shift, age)
    return Partitions(*(torch.from_numpy(column) for column in columns))


def numpy_mean(partitions: Partitions, user: int) -> np.ndarray | None:
    """The mean over partitions of the mean of their texts."""
    summary, shift, has_summary, has_shift, _ = (column[user].numpy() for column in partitions)
    known = [
        np.mean([text[k] for text, has in ((summary, has_summary), (shift, has_shift)) if has[k]], axis=0)
        for k in range(len(summary))
        if has_summary[k] or has_shift[k]
    ]
    return np.mean(known, axis=0) if known else None


def numpy_fusion(fusion: InterestFusion, partitions: Partitions, user: int, candidate: np.ndarray | None) -> np.ndarray:
    """The docstring's equations."""
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in fusion.named_parameters()}
    mean = numpy_mean(partitions, user)
    if mean is None:
        return weights["null"]
    side, vector = ("candidate_query", candidate) if candidate is not None else ("self_query", mean)
    query = weights[f"{side}.weight"] @ vector + weights[f"{side}.bias"]
    summary, shift, has_summary, has_shift, age = (column[user].numpy() for column in partitions)
    scores, values = [], []
    for k in range(len(age)):
        texts = [(0, summary[k])] * bool(has_summary[k]) + [(1, shift[k])] * bool(has_shift[k])
        for kind, x in texts:
            decay = np.array([2 ** (-float(age[k]) / half_life) for half_life in fusion.HALF_LIVES_DAYS])
            key = weights["key.weight"] @ x + weights["type_key"][kind] + weights["age_key.weight"] @ decay
            scores.append(query @ key / np.sqrt(len(key)) - np.log(len(texts)))
            values.append((1 + weights["gain"][kind]) * x + weights["offset"][kind])
    alpha = np.exp(np.array(scores) - max(scores))
    return (alpha / alpha.sum()) @ np.array(values)


@pytest.mark.parametrize("asked", [False, True])
def test_fusion_follows_its_formula(asked: bool) -> None:
    fusion = shaken(InterestFusion(DIM, attention=3, candidate_dim=CANDIDATE))
    partitions = users()
    candidate = torch.randn(7, CANDIDATE)
    fused, known = fusion(*partitions, candidate if asked else None)
    for user in range(7):
        expected = numpy_fusion(fusion, partitions, user, candidate[user].numpy() if asked else None)
        np.testing.assert_allclose(fused[user].detach(), expected, rtol=1e-4, atol=1e-5)
    assert known.tolist() == [float(numpy_mean(partitions, user) is not None) for user in range(7)]


def test_rows_without_a_candidate_ask_the_self_query() -> None:
    fusion = shaken(InterestFusion(DIM, candidate_dim=CANDIDATE))
    partitions, candidate = users(), torch.randn(7, CANDIDATE)
    has = torch.tensor([True, False, True, False, True, False, True])
    candidate[~has] = torch.nan
    mixed = fusion(*partitions, candidate, has)[0]
    torch.testing.assert_close(mixed[has], fusion(*partitions, candidate)[0][has])
    torch.testing.assert_close(mixed[~has], fusion(*partitions)[0][~has])


@pytest.mark.parametrize("attention", [None, 32])
def test_it_begins_as_the_mean_over_partitions(attention: int | None) -> None:
    partitions = users()
    fused, _ = InterestFusion(DIM, attention=attention)(*partitions)
    for user in range(1, 7):
        expected = numpy_mean(partitions, user)
        np.testing.assert_allclose(fused[user].detach(), np.zeros(DIM) if expected is None else expected, atol=1e-6)


def test_a_user_without_texts_has_the_null_vector_and_everything_stays_finite() -> None:
    fusion = shaken(InterestFusion(DIM, candidate_dim=CANDIDATE))
    nothing = Partitions(*(column[:1] for column in users()))
    fused, known = fusion(*nothing, torch.randn(1, CANDIDATE))
    torch.testing.assert_close(fused[0], fusion.null)
    assert known.tolist() == [0.0]
    fused.sum().backward()
    gradients = {name: p.grad for name, p in fusion.named_parameters()}
    assert all(g is None or torch.isfinite(g).all() for g in gradients.values())
    assert gradients["null"].abs().sum() > 0
    # No partition at all, as for a batch of users who are all new.
    empty = Partitions(*(column[:, :0] for column in users()))
    torch.testing.assert_close(fusion(*empty)[0], fusion.null.expand(7, DIM))


def test_a_padded_partition_changes_nothing() -> None:
    fusion = shaken(InterestFusion(DIM, candidate_dim=CANDIDATE))
    partitions, candidate = users(), torch.randn(7, CANDIDATE)

    def padded(column: torch.Tensor) -> torch.Tensor:
        filler = torch.full((7, 3, *column.shape[2:]), torch.nan) if column.is_floating_point() else torch.zeros(7, 3)
        return torch.cat([column, filler.to(column.dtype)], dim=1)

    more = Partitions(*map(padded, partitions))
    torch.testing.assert_close(fusion(*more, candidate)[0], fusion(*partitions, candidate)[0])


def test_partitions_of_equal_age_may_change_places_and_others_may_not() -> None:
    fusion = shaken(InterestFusion(DIM))
    partitions = users()
    order = torch.tensor([2, 0, 3, 1])
    moved = Partitions(*(column[:, order] for column in partitions))
    torch.testing.assert_close(fusion(*moved)[0], fusion(*partitions)[0])
    # The same contents at other ages are another history.
    aged = moved._replace(age_days=partitions.age_days.nan_to_num(5.0))
    before = partitions._replace(age_days=partitions.age_days.nan_to_num(5.0))
    assert not torch.allclose(fusion(*aged)[0][1:], fusion(*before)[0][1:])
    equal = torch.full_like(partitions.age_days, 30.0)
    torch.testing.assert_close(
        fusion(*moved._replace(age_days=equal))[0], fusion(*partitions._replace(age_days=equal))[0]
    )


def test_without_shifts_the_summaries_are_attended_to_alone() -> None:
    fusion = shaken(InterestFusion(DIM))
    partitions = users()
    none = partitions._replace(has_shift=torch.zeros_like(partitions.has_shift))
    torch.testing.assert_close(fusion(*none._replace(shift=None))[0], fusion(*none)[0])


def test_gradients_reach_texts_candidate_and_after_a_step_all_weights() -> None:
    fusion = InterestFusion(DIM, candidate_dim=CANDIDATE)
    partitions = users()
    summary = partitions.summary.nan_to_num().requires_grad_()
    candidate = torch.randn(7, CANDIDATE, requires_grad=True)
    has = torch.tensor([True, False] * 3 + [True])
    optimiser = torch.optim.SGD(fusion.parameters(), lr=0.05)
    target = torch.randn(7, DIM)
    for _ in range(3):
        optimiser.zero_grad()
        (fusion(*partitions._replace(summary=summary), candidate, has)[0] - target).square().sum().backward()
        optimiser.step()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert summary.grad[partitions.has_summary].abs().sum() > 0
    assert not summary.grad[~partitions.has_summary].any()
    assert candidate.grad[has].abs().sum() > 0


def test_attention_finds_the_partition_that_matters() -> None:
    """Texts that agree with the candidate decide the label; the mean over many others hides them."""
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(400, 8, 12), dim=2)
    candidate = texts[torch.arange(400), torch.randint(0, 8, (400,))]
    masks = torch.ones(400, 8, dtype=torch.bool), torch.zeros(400, 8, dtype=torch.bool)
    fusion = InterestFusion(12, candidate_dim=12)
    optimiser = torch.optim.Adam(fusion.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        fused, _ = fusion(texts, None, *masks, torch.zeros(400, 8), candidate)
        loss = (fused - candidate).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_state_dicts_of_another_version_are_refused() -> None:
    state = {**InterestFusion(DIM).state_dict(), "state_version": torch.tensor(2)}
    with pytest.raises(InputError, match="InterestFusion are of layout 2, this version of Lorestream has layout 1"):
        InterestFusion(DIM).load_state_dict(state)


def test_inputs_and_widths_that_do_not_fit_are_refused() -> None:
    partitions = users()
    with pytest.raises(ConfigError, match="attention=0"):
        InterestFusion(DIM, attention=0)
    with pytest.raises(ConfigError, match="candidate_dim=5 needs"):
        InterestFusion(DIM, attention=None, candidate_dim=5)
    with pytest.raises(InputError, match=r"`summary` is to be \[b, p, 9\], it is \[7, 4, 6\]"):
        InterestFusion(9)(*partitions)
    with pytest.raises(InputError, match=r"`has_shift` is to be \[7, 4\], it is \[7, 3\]"):
        InterestFusion(DIM)(*partitions._replace(has_shift=partitions.has_shift[:, :3]))
    with pytest.raises(InputError, match="Build it with candidate_dim="):
        InterestFusion(DIM)(*partitions, torch.randn(7, CANDIDATE))
    with pytest.raises(InputError, match=r"`candidate` is to be \[7, 5\], it is \[7, 4\]"):
        InterestFusion(DIM, candidate_dim=CANDIDATE)(*partitions, torch.randn(7, 4))
