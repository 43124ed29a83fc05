"""Changes of a lower rank: nearest, with the right error, and kept where they have it already."""

import pytest
import torch
from torch import nn

from weightloom.errors import ConfigError
from weightloom.forms import Factored, LowRank, RowScale, add, average, interpolate, to_rank
from weightloom.forms.factored import built


def low_rank(rank, tasks=3, own=None):
    own = torch.randn(8, 3, 2).double() if own is None else own
    columns = own[0].numel()
    parts = {"up": (tasks, 8, rank), "down": (tasks, rank, columns)}
    return Factored(
        LowRank(rank), own, {n: torch.randn(s, dtype=own.dtype) for n, s in parts.items()}
    )


@pytest.mark.parametrize("held", ["factors", "other form", "built"])
def test_the_result_is_the_truncated_decomposition_and_the_error_its_tail(held):
    value = low_rank(4)
    if held == "other form":
        value = Factored(RowScale(), value.own, {"gain": torch.randn(3, 8).double()})
    params = {"kernel": value.dense() if held == "built" else value, "bias": torch.ones(3, 2)}
    result, error = to_rank(params, 2, own={"kernel": value.own})
    change = (value.dense() - value.own).flatten(2)
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    nearest = (left[..., :2] * sizes[:, None, :2]) @ right[:, :2]
    torch.testing.assert_close((result["kernel"].dense() - value.own).flatten(2), nearest)
    torch.testing.assert_close(error, (change - nearest).norm(dim=(1, 2)) / change.norm(dim=(1, 2)))
    assert result["kernel"].form == LowRank(2) and result["bias"] is params["bias"]
    assert error.min() > 0.01


def test_sums_means_and_mixtures_of_adapters_become_adapters_of_one_size_again():
    own = torch.randn(8, 6).double()
    a, b = ({"w": low_rank(1, own=own)} for _ in range(2))
    for joined in (add(a, b), interpolate(a, b, 0.3), average(a)):
        exact, error = to_rank(joined, 4, own={"w": own})
        assert error.max() < 1e-10 and exact["w"].form == LowRank(4)
        torch.testing.assert_close(built(exact["w"]), built(joined["w"]))
    mean, error = to_rank(average(a), 1)
    lost = (built(mean["w"]) - built(average(a)["w"])).norm()
    torch.testing.assert_close(error[0], lost / (built(average(a)["w"]) - own).norm())


def test_what_has_the_rank_is_kept_and_no_change_has_no_error():
    value = low_rank(2)
    result, error = to_rank({"w": value}, 2)
    assert result["w"] is value and not error.any()
    nothing = value.map(torch.zeros_like)
    result, error = to_rank({"w": nothing}, 1)
    assert not error.any() and torch.equal(built(result["w"])[0], value.own)
    wide, _ = to_rank({"w": value}, 7)  # above the smaller side
    torch.testing.assert_close(built(wide["w"]), built(value))


def test_own_values_are_asked_for_and_a_matrix_is_needed():
    net = nn.Linear(4, 3)
    plain = {"weight": net.weight.detach()[None] + 1}
    with pytest.raises(ConfigError, match=r"'weight' is not known.*own=hyper.base"):
        to_rank(plain, 1)
    assert to_rank(plain, 1, own=net)[1] < 1e-6
    with pytest.raises(ConfigError, match="no matrix"):
        to_rank({"bias": torch.ones(2, 3)}, 1)
