"""Functions completed without learning to learn: by near values, or by a Gaussian fitted to other functions."""

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.base import apply_per_task
from weightloom.errors import ShapeError
from weightloom.params import Params


class NearPoints(nn.Module):
    """A function that is a mean of values at points, the nearer the more.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        power: Weights fall with this power of the distance.
    """

    def __init__(self, x_dim: int, y_dim: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.points = nn.Parameter(torch.zeros(1, x_dim), requires_grad=False)
        self.values = nn.Parameter(torch.zeros(1, y_dim), requires_grad=False)
        self.log_weights = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it, (batch, x_dim) to (batch, y_dim)."""
        squares = (x[:, None] - self.points).square().sum(2).clamp(min=1e-12)
        return torch.softmax(self.log_weights - 0.5 * self.power * squares.log(), dim=1) @ self.values


class Interpolation(Learner):
    """The mean of the support values weighted by inverse distance; with a large ``power`` the nearest value.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        power: Weights fall with this power of the distance.

    Source:
        Shepard, "A two-dimensional interpolation function for irregularly-spaced data" (1968).
    """

    base: NearPoints
    trained = False

    def __init__(self, x_dim: int = 2, y_dim: int = 1, power: float = 4.0) -> None:
        super().__init__()
        self.base = NearPoints(x_dim, y_dim, power)

    def adapt(self, support: Support) -> Params:
        """The points are the function."""
        log_weights = torch.where(support.mask, 0.0, -1e5).to(
            support.y.dtype
        )  # a point that is not there weighs nothing
        return {"points": support.x, "values": support.y, "log_weights": log_weights}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Evaluate each task's function."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


class Picture(nn.Module):
    """A grey image as a function of the position, linear between the centres of pixels.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.zeros(height, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it, (batch, 2) to (batch, 1)."""
        at, image = x[None, None], self.pixels[None, None]
        return grid_sample(image, at, align_corners=False, padding_mode="border")[0, 0, 0, :, None]


class GaussianPixels(Learner):
    """The most likely image given the observed pixels, where all images are one Gaussian of known covariance.

    Args:
        images: Images to measure the Gaussian on, (images, height, width): uint8 in 0 to 255, or float.
        ridge: Added to the variance of every pixel.
        bounds: What grey values are known to lie between; the completed image is clamped to it.

    Source:
        Rasmussen and Williams, "Gaussian processes for machine learning" (2006), equation A.6.
    """

    base: Picture
    trained = False
    mean: Tensor
    covariance: Tensor

    def __init__(self, images: Tensor, ridge: float = 1e-3, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.bounds = bounds
        self.base = Picture(*images.shape[1:])
        pixels = images.flatten(1).double() / (255 if images.dtype == torch.uint8 else 1)
        centred = pixels - pixels.mean(0)
        self.ridge = ridge
        self.register_buffer("mean", pixels.mean(0))
        self.register_buffer("covariance", centred.mT @ centred / len(pixels))

    def adapt(self, support: Support) -> Params:
        """Complete the image of each task, in double precision.

        Raises:
            ShapeError: If a position is not two numbers, or a value not one.
        """
        if (support.x.shape[2], support.y.shape[2]) != (2, 1):
            raise ShapeError(
                f"`support.x` is {support.x.shape[2]} wide and `support.y` {support.y.shape[2]}. A pixel has two "
                "numbers for its position and one for its grey. Pass tasks such as `FunctionTasks` draws."
            )
        size = support.x.new_tensor(self.base.pixels.shape).flip(0)
        column, row = ((support.x + 1) / 2 * size).floor().clamp(min=0).minimum(size - 1).long().unbind(2)
        pixel, there = row * self.base.pixels.shape[1] + column, support.mask.double()
        gram = self.covariance[pixel[:, :, None], pixel[:, None]] * there[:, :, None] * there[:, None]
        gram.diagonal(dim1=1, dim2=2).add_(self.ridge + 1 - there)
        miss = (support.y[..., 0].double() - self.mean[pixel]) * there
        weights = torch.linalg.solve(gram, miss[..., None])[..., 0]
        spread = weights.new_zeros(len(weights), len(self.mean)).scatter_add(1, pixel, weights)
        image = self.mean + spread @ self.covariance
        image = image if self.bounds is None else image.clamp(*self.bounds)
        return {"pixels": image.to(support.y.dtype).unflatten(1, self.base.pixels.shape)}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Read each task's image."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
