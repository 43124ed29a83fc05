"""Your own base network: generate a part of it, take one task's network out and export it.

The tasks: classify points of the plane by the side of a line. Each task has another line, given by
sixteen labelled points. The base is a small network with a GroupNorm; its first
layer is shared by all tasks, and only the norm and the head are generated.

Run:     python examples/own_base.py
Takes:   less than a minute on one CPU core.
Expect:  an accuracy over 0.85 on 500 new tasks (chance: 0.5), and an exported program with the
         outputs of the trained network.
Shows:   conditions, hypernets with globs, base with `specialise`, losses.
"""

import argparse

import torch
from torch import Tensor, nn

from weightloom import DeepSets, MLPHyperNetwork, apply_per_task, cross_entropy_per_task, specialise


class Net(nn.Module):
    """Plain PyTorch module: two linear layers with a GroupNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 32)
        self.norm = nn.GroupNorm(4, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map points, (batch, 2), to the scores of both sides, (batch, 2)."""
        scores: Tensor = self.head(torch.relu(self.norm(self.first(x))))
        return scores


def sample(tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a line per task with labelled points: 16 of support, 32 of query."""
    normal = torch.randn(tasks, 2, 1, generator=generator)
    offset = 0.5 * torch.randn(tasks, 1, 1, generator=generator)
    x = torch.randn(tasks, 48, 2, generator=generator)
    labels = (x @ normal > offset * normal.norm(dim=1, keepdim=True))[..., 0].long()
    return x[:, :16], labels[:, :16], x[:, 16:], labels[:, 16:]


def main(steps: int) -> float:
    """Train, export one task's network and check it; return the accuracy on new tasks."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    base = Net()
    encoder = DeepSets(x_dim=2, y_dim=2, condition_dim=16, hidden=64)
    hyper = MLPHyperNetwork(base, condition_dim=16, generate=["norm.*", "head.*"])
    print(f"generated: {list(hyper.spec.shapes)}; shared: {list(hyper.spec.shared)}")
    optimiser = torch.optim.Adam([*encoder.parameters(), *hyper.parameters()], lr=3e-3)

    def generate(support_x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return hyper(encoder(support_x, nn.functional.one_hot(labels, 2).float()))

    for step in range(steps):
        support_x, support_labels, query_x, query_labels = sample(32, generator)
        logits = apply_per_task(base, generate(support_x, support_labels), query_x)
        loss = cross_entropy_per_task(logits, query_labels).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}")

    support_x, support_labels, query_x, query_labels = sample(500, torch.Generator().manual_seed(1))
    with torch.no_grad():
        params = generate(support_x, support_labels)
        logits = apply_per_task(base, params, query_x)
    accuracy = (logits.argmax(2) == query_labels).float().mean().item()
    print(f"accuracy on new tasks {accuracy:.3f}")

    network = specialise(base, params, task=7).eval()
    program = torch.export.export(
        network, (query_x[7],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    exported = program.module()
    alone = network(query_x[7])
    assert torch.equal(exported(query_x[7]), alone)  # bit for bit
    torch.testing.assert_close(alone, logits[7])  # alone, and in a batch of 500 tasks
    assert exported(query_x[7, :3]).shape == (3, 2)  # any batch size
    print("one task, specialised and exported, agrees with the run")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    torch.set_num_threads(1)
    accuracy = main(parser.parse_args().steps)
    assert accuracy > 0.85, accuracy
