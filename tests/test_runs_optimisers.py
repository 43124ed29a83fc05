"""Checkpoints without a run: what an optimiser knows comes back, what is not its own is refused and named."""

import pytest
import torch

from weightloom.errors import CheckpointError
from weightloom.files import save_tensors
from weightloom.runs.checkpoint import (
    check_fits,
    read_checkpoint,
    restore_state,
    state_of,
    write_checkpoint,
)


def stepped(steps=3, betas=(0.9, 0.999)):
    """Two parameters and an optimiser that has moved them."""
    moved = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    optimiser = torch.optim.Adam(moved, lr=0.1, betas=betas)
    for step in range(steps):
        step_of(moved, optimiser, step)
    return moved, optimiser


def step_of(moved, optimiser, step):
    optimiser.zero_grad()
    sum(((p - step) ** 2).sum() for p in moved).backward()
    optimiser.step()


def test_an_optimiser_goes_on_from_its_state_as_if_it_had_not_stopped(tmp_path):
    (moved, whole), (again, fresh) = stepped(), stepped(0)
    kept = state_of({"first": whole, "a/b": whole})
    assert (
        sorted(kept)[:3] == ["a/b/0/exp_avg", "a/b/0/exp_avg_sq", "a/b/0/step"] and len(kept) == 12
    )
    write_checkpoint(tmp_path / "a", kept, {"step": 3}, "")
    tensors, facts = read_checkpoint(tmp_path / "a")
    assert facts["step"] == 3 and tensors.keys() == kept.keys()
    with torch.no_grad():
        for old, new in zip(moved, again, strict=True):
            new.copy_(old)
    restore_state(tmp_path / "a", {**tensors, "other/9/step": torch.zeros(1)}, {"a/b": fresh})
    step_of(moved, whole, 3)
    step_of(again, fresh, 3)
    assert all(torch.equal(old, new) for old, new in zip(moved, again, strict=True))


def test_a_state_gets_the_strides_of_its_parameter(tmp_path):
    """Fused kernels read parameter and state side by side in memory, whatever their strides."""
    torch.manual_seed(0)
    start = torch.rand(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    moved, again = (torch.nn.Parameter(start.clone()) for _ in range(2))
    whole, fresh = (torch.optim.AdamW([its], lr=0.1, fused=True) for its in (moved, again))
    step_of([moved], whole, 0)
    write_checkpoint(tmp_path / "a", state_of({"o": whole}), {"step": 1}, "")
    again.data.copy_(moved.data)
    restore_state(tmp_path / "a", read_checkpoint(tmp_path / "a")[0], {"o": fresh})
    assert fresh.state[again]["exp_avg"].stride() == again.stride()
    step_of([moved], whole, 1)
    step_of([again], fresh, 1)
    assert torch.equal(moved, again)


def test_no_state_and_a_state_of_no_steps_are_fine(tmp_path):
    _, optimiser = stepped()
    state = state_of({"o": optimiser})
    at_zero = {
        name: torch.zeros((), dtype=torch.float64) if name.endswith("step") else v
        for name, v in state.items()
    }
    restore_state(tmp_path, at_zero, {"o": optimiser})
    assert optimiser.state_dict()["state"][1]["step"] == 0
    restore_state(tmp_path, {}, {"o": optimiser})
    assert optimiser.state_dict()["state"] == {}


SPOILT = {
    "a part missing": {"o/1/exp_avg": None},
    "one parameter too many": {
        f"o/2/{key}": torch.ones(()) for key in ("exp_avg", "exp_avg_sq", "step")
    },
    "another shape": {"o/1/exp_avg": torch.ones(3)},
    "another dtype": {"o/1/exp_avg": torch.ones(4).half()},
    "steps below zero": {"o/1/step": torch.tensor(-1.0)},
    "steps in a row": {"o/1/step": torch.ones(4)},
    "steps in integers": {"o/1/step": torch.tensor(3)},
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_state_that_is_not_the_optimisers_is_refused_and_leaves_it_alone(how, tmp_path):
    _, optimiser = stepped()
    before = state_of({"o": optimiser})
    spoilt = {name: value for name, value in (before | SPOILT[how]).items() if value is not None}
    with pytest.raises(CheckpointError, match="whose optimiser `o` moved other parameters"):
        restore_state(tmp_path / "a", spoilt, {"o": optimiser})
    after = state_of({"o": optimiser})
    assert after.keys() == before.keys() and all(
        after[name].equal(value) for name, value in before.items()
    )


@pytest.mark.parametrize("wrote", ["mine", ""])
def test_a_checkpoint_is_read_by_all_or_by_its_own(wrote, tmp_path):
    write_checkpoint(tmp_path / "a", {"w": torch.ones(2)}, {"step": 1}, wrote)
    for reader in {"", wrote}:
        assert read_checkpoint(tmp_path / "a", reader)[0]["w"].equal(torch.ones(2))
    whose = (
        r"another run or method \(digest mine, not yours\)"
        if wrote
        else r"no run \(it has no digest\)"
    )
    with pytest.raises(CheckpointError, match=f"was written by {whose}. A checkpoint belongs"):
        read_checkpoint(tmp_path / "a", "yours")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"holds": ["a", "b", "w", "x", "y"]}, r"\(a, b, x is missing or was added\)"),
        ({"holds": []}, r"\(w is missing or was added\)"),
        ({"holds": ["w"], "step": "1"}, r"\(its step is '1'\)"),
        ({"holds": ["w"], "step": None}, r"\(its step is None\)"),
    ],
)
def test_a_checkpoint_that_does_not_hold_what_it_says_is_refused(facts, said, tmp_path):
    save_tensors(tmp_path / "a", {"w": torch.ones(2)}, facts)
    with pytest.raises(CheckpointError, match=f"does not hold the tensors .* {said}"):
        read_checkpoint(tmp_path / "a")


def test_a_checkpoint_without_a_step_is_fine(tmp_path):
    write_checkpoint(tmp_path / "a", {"w": torch.ones(2)}, {}, "")
    assert read_checkpoint(tmp_path / "a")[1] == {"identity": "", "holds": ["w"]}


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({}, "differ in b, w. A"),
        ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "differ in c. A"),
        (
            {"w": torch.ones(3), "b": torch.ones(1)},
            r"differ in w \(\(3,\), torch.float32, not \(2,\), torch.float32\). A",
        ),
        (
            {"w": torch.ones(2), "b": torch.ones(1).half()},
            r"differ in b \(\(1,\), torch.float16, not .*float32\). A",
        ),
        ({name: torch.ones(1) for name in "bwcdef"}, "differ in c, d, e. A"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(kept, said, tmp_path):
    own = {"w": torch.ones(2), "b": torch.ones(1)}
    check_fits(tmp_path, own, {name: value.clone() for name, value in own.items()})
    with pytest.raises(CheckpointError, match=said):
        check_fits(tmp_path, own, kept)
