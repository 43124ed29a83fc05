"""A problem of one's own for `weightloom gan`: two blobs in the plane, one for each condition."""

import torch
from torch import nn

from weightloom.adversarial import AdversarialPair, ConcatenatedPlayer, GeneratedPair
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp

CENTRES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
SPREAD = 0.1


class Blobs(GanProblem):
    score, better, shuffles = "distance", "lower", True
    names = ("right", "up")
    protocol = "The centre of each blob is known."

    def __init__(self, config):
        self.config = config

    def conditions(self):
        return torch.eye(2)

    def build(self, method):
        noise_dim = self.config.noise_dim
        if method == "concat":
            players = mlp([noise_dim + 2, 16, 2]), mlp([4, 16, 1])
            return AdversarialPair(*map(ConcatenatedPlayer, players), noise_dim)
        if method == "broken":
            return AdversarialPair(Broken(), ConcatenatedPlayer(mlp([4, 16, 1])), noise_dim)
        base = nn.ModuleDict(
            {"generator": mlp([noise_dim, 16, 2]), "discriminator": mlp([2, 16, 1])}
        )
        return GeneratedPair(base, MLPHyperNetwork(base, 2), noise_dim)

    def draw(self, step, generator):
        noise = torch.randn(2, self.config.batch // 2, 2, generator=generator)
        return self.conditions(), CENTRES[:, None] + SPREAD * noise

    def samples(self, model, setting, shuffled=False):
        conditions = self.conditions()
        chance = torch.Generator().manual_seed(1)
        return model.sample(conditions.flip(0) if shuffled else conditions, 200, chance)

    def scores(self, setting, samples):
        return {
            "distance": (samples.mean(1) - CENTRES).norm(dim=1),
            "spread": samples.std(1).mean(1),
        }

    def ceilings(self, setting):
        chance = torch.Generator().manual_seed(2)
        return {"real": CENTRES[:, None] + SPREAD * torch.randn(2, 200, 2, generator=chance)}

    def frame(self, model):
        return self.samples(model, "samples")[0, :4]


class Broken(nn.Module):
    """A generator whose samples grow beyond all bounds."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1e9))

    def forward(self, condition, noise):
        return self.scale * noise[..., :2]
