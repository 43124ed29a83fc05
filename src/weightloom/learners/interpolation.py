"""Function completion without meta-learning: by near values, or by a Gaussian over functions."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from weightloom.base import apply_per_task
from weightloom.errors import ShapeError
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params


class NearPoints(nn.Module):
    """Function defined by inverse-distance weighting of values at given points.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        power: Exponent of the distance in the weights.
    """

    def __init__(self, x_dim: int, y_dim: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.points = nn.Parameter(torch.zeros(1, x_dim), requires_grad=False)
        self.values = nn.Parameter(torch.zeros(1, y_dim), requires_grad=False)
        self.log_weights = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the function, (batch, x_dim) to (batch, y_dim)."""
        squares = (x[:, None] - self.points).square().sum(2).clamp(min=1e-12)
        return (
            torch.softmax(self.log_weights - 0.5 * self.power * squares.log(), dim=1) @ self.values
        )


class Interpolation(Learner):
    """Inverse-distance weighting of the support values; nearest neighbour for a large ``power``.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        power: Exponent of the distance in the weights.

    Source:
        Shepard, "A two-dimensional interpolation function for irregularly-spaced data" (1968).
    """

    base: NearPoints
    trained = False

    def __init__(self, x_dim: int = 2, y_dim: int = 1, power: float = 4.0) -> None:
        super().__init__()
        self.base = NearPoints(x_dim, y_dim, power)

    def adapt(self, support: Support) -> Params:
        """Support points and values, with zero weight for masked points."""
        log_weights = torch.where(support.mask, 0.0, -1e5).to(support.y.dtype)
        return Params({"points": support.x, "values": support.y, "log_weights": log_weights})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate each task's function."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


class Picture(nn.Module):
    """Grey image as a function of position, by bilinear interpolation between pixel centres.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.zeros(height, width), requires_grad=False)

    def place(self, x: Tensor) -> Tensor:
        """Number of the pixel at positions in [-1, 1], row by row from the top, (..., 2) to (...).

        Positions outside belong to the pixel at the border.
        """
        size = x.new_tensor(self.pixels.shape[-2:]).flip(0)
        column, row = (((x + 1) / 2 * size).floor().clamp(min=0).minimum(size - 1).long()).unbind(
            -1
        )
        return row * self.pixels.shape[-1] + column

    def params(self, values: Tensor) -> Params:
        """Params of images from the values of their pixels, (tasks, pixels, 1)."""
        return Params({"pixels": values[..., 0].unflatten(1, self.pixels.shape)})

    def forward(self, x: Tensor) -> Tensor:
        """Grey values at positions in [-1, 1], (batch, 2) to (batch, 1)."""
        at, image = x[None, None], self.pixels[None, None]
        return grid_sample(image, at, align_corners=False, padding_mode="border")[0, 0, 0, :, None]


class GaussianPixels(Learner):
    """Image completion by the mean of a Gaussian over images, given the observed pixels.

    Args:
        images: Images to estimate mean and covariance from, (images, height, width): uint8 in 0 to
            255, or float.
        ridge: Added to the variance of every pixel.
        bounds: Known minimum and maximum of grey values, to which the completed image is clamped.

    Source:
        Rasmussen and Williams, "Gaussian processes for machine learning" (2006), equation A.6.
    """

    base: Picture
    trained = False
    mean: Tensor
    covariance: Tensor

    def __init__(
        self, images: Tensor, ridge: float = 1e-3, bounds: tuple[float, float] | None = None
    ) -> None:
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
                f"`support.x` is {support.x.shape[2]} wide and `support.y` {support.y.shape[2]}. A "
                "pixel has two numbers for its position and one for its grey. Pass tasks such as "
                "`FunctionTasks` draws."
            )
        pixel = self.base.place(support.x)
        covariance = self.covariance[pixel[:, :, None], pixel[:, None]]
        miss = support.y[..., 0].double() - self.mean[pixel]
        weights = _weights(covariance, miss, support.mask, self.ridge)
        spread = weights.new_zeros(len(weights), len(self.mean)).scatter_add(1, pixel, weights)
        image = self.mean + spread @ self.covariance
        image = image if self.bounds is None else image.clamp(*self.bounds)
        return self.base.params(image.to(support.y.dtype)[..., None])

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Interpolate each task's image."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


class PrincipalCurves(nn.Module):
    """Mean curve plus a weighted sum of components, with linear interpolation between equal steps.

    Args:
        curves: Mean and components, (points, 1 + components).
        span: Positions of the first and last point; curves are constant beyond.
    """

    curves: Tensor

    def __init__(self, curves: Tensor, span: tuple[float, float]) -> None:
        super().__init__()
        self.span = span
        self.register_buffer("curves", curves)
        self.scores = nn.Parameter(torch.zeros(curves.shape[1] - 1), requires_grad=False)

    def at(self, x: Tensor) -> Tensor:
        """Values of mean and components: positions, (..., 1), to (..., 1 + components)."""
        (first, last), steps = self.span, len(self.curves) - 1
        place = ((x[..., 0].to(self.curves.dtype) - first) / (last - first) * steps).clamp(0, steps)
        left = place.floor().clamp(max=steps - 1).long()
        return torch.lerp(self.curves[left], self.curves[left + 1], (place - left)[..., None])

    def forward(self, x: Tensor) -> Tensor:
        """Values of the weighted sum, (batch, 1) to (batch, 1)."""
        known = self.at(x)
        scores = self.scores.to(known.dtype)[:, None]
        return (known[..., :1] + known[..., 1:] @ scores).to(x.dtype)


class GaussianCurves(Learner):
    """Curve completion by the mean of a low-dimensional Gaussian over curves, given some points.

    The Gaussian is the mean of complete curves and their principal components. Each task has one
    score per component, from ridge regression: Bayesian linear regression on components scaled by
    their standard deviation.

    Args:
        curves: Curves to estimate the Gaussian from, (curves, points), at equal steps.
        span: Positions of the first and last point.
        components: Number of principal components.
        ridge: Variance of the observed values around the curve.

    Source:
        Ramsay and Silverman, "Functional data analysis" (2005), chapter 8, for the components;
        Rasmussen and Williams, "Gaussian processes for machine learning" (2006), equation 2.25, for
        the scores.
    """

    base: PrincipalCurves
    trained = False

    def __init__(
        self, curves: Tensor, span: tuple[float, float], components: int = 8, ridge: float = 1e-3
    ) -> None:
        super().__init__()
        self.ridge = ridge
        curves = curves.double()
        mean = curves.mean(0)
        variances, directions = torch.linalg.eigh(
            (curves - mean).mT @ (curves - mean) / len(curves)
        )
        # `eigh` sorts in ascending order: the largest components come last.
        scaled = (directions * variances.clamp(min=0).sqrt()).flip(1)[:, :components]
        self.base = PrincipalCurves(torch.cat([mean[:, None], scaled], dim=1), span)

    def adapt(self, support: Support) -> Params:
        """Compute the scores of each task, in double precision.

        Raises:
            ShapeError: If a position or a value is not one number.
        """
        if (support.x.shape[2], support.y.shape[2]) != (1, 1):
            raise ShapeError(
                f"`support.x` is {support.x.shape[2]} wide and `support.y` {support.y.shape[2]}. A "
                "curve has one number for a position and one for its value. Pass tasks such as "
                "`SinusoidTasks` draws."
            )
        known = self.base.at(support.x).double()
        mean, components = known[..., 0], known[..., 1:]
        miss = support.y[..., 0].double() - mean
        weights = _weights(components @ components.mT, miss, support.mask, self.ridge)
        scores = (components.mT @ weights[..., None])[..., 0]
        return Params({"scores": scores.to(support.y.dtype)})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate each task's curve."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


def _weights(covariance: Tensor, miss: Tensor, mask: Tensor, ridge: float) -> Tensor:
    """Weights (covariance + ridge)⁻¹ miss of each task's observed values, zero where masked.

    The posterior mean of a variable is its prior mean plus its covariance with the observed values
    times these weights.

    Args:
        covariance: Prior covariance of the values, (tasks, shots, shots).
        miss: Observed values minus their prior mean, (tasks, shots).
        mask: True for real values, False for padding, (tasks, shots).
        ridge: Variance of an observation around its value.
    """
    there = mask.to(covariance.dtype)
    gram = covariance * there[:, :, None] * there[:, None]
    gram.diagonal(dim1=1, dim2=2).add_(ridge + 1 - there)
    return torch.linalg.solve(gram, (miss * there)[..., None])[..., 0]
