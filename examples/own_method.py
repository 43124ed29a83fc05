"""A few-shot method of your own: shared features and a head per task by ridge regression.

Run:     python examples/own_method.py
Takes:   less than a minute on one CPU core.
Expect:  on 600 new sinusoids, from 10 points each, a mean squared error under 0.05; a network
         trained on the 10 points alone is at least ten times worse.
Shows:   learner, problems, judge: the parts of a method of the command line. From this folder it
         also runs with a report: `python -m weightloom fewshot --data sinusoid --method
         own_method:RidgeHead --comparators hypernetwork`.
"""

import argparse

import torch
from torch import Tensor, nn

from weightloom import Params, apply_per_task
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import judge
from weightloom.apps.fewshot.problems import Problem, problem_of
from weightloom.base import apply_shared
from weightloom.learners.learner import Learner, Support
from weightloom.training import TrainOptions


class RidgeHead(Learner):
    """Ridge regression of the last layer per task, differentiated through; other layers are shared.

    Args:
        problem: Builds the base network: here an MLP whose last layer is a linear head.

    Source:
        Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019): R2-D2.
    """

    base: nn.Sequential

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        base = problem.build(1)
        assert isinstance(base, nn.Sequential)
        self.base, self.last = base, str(len(base) - 1)
        self.log_penalty = nn.Parameter(torch.tensor(0.1).log())

    def adapt(self, support: Support) -> Params:
        """Solve for each task's head: w = Fᵀ(F Fᵀ + penalty)⁻¹ y; the bias is one more feature."""
        features = apply_shared(self.base[:-1], support.x)  # (tasks, shots, features)
        features = (
            torch.cat([features, torch.ones_like(features[..., :1])], dim=2)
            * support.mask[..., None]
        )
        gram = features @ features.mT + self.log_penalty.exp() * torch.eye(features.shape[1])
        head = (features.mT @ torch.linalg.solve(gram, support.y * support.mask[..., None])).mT
        return {f"{self.last}.weight": head[..., :-1], f"{self.last}.bias": head[..., -1]}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run the shared layers, then each task's head."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


def main(steps: int) -> tuple[float, float]:
    """Train; return the error on new tasks, and that of networks trained on a support set each."""
    torch.manual_seed(0)
    problem = problem_of(FewShotConfig("sinusoid").resolved())
    ours, alone = RidgeHead(problem), problem.learner("scratch")
    ours.fit(problem.train_source(), TrainOptions(steps=steps, tasks=32, outer_lr=3e-3))
    errors = [
        judge(method, problem, shots=10, tasks=600).per_task["mse"] for method in (ours, alone)
    ]
    error, error_alone = (values.mean().item() for values in errors)
    print(
        f"error on new sinusoids {error:.3f}; of networks trained on the 10 points alone "
        f"{error_alone:.3f}"
    )
    return error, error_alone


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    torch.set_num_threads(1)
    error, error_alone = main(parser.parse_args().steps)
    assert error < 0.05, error
    assert error_alone > 10 * error, error_alone
