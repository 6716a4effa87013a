"""Invariant attribution: a scalar that stays the same under every invertible linear map of the channels."""

from collections.abc import Callable, Iterable

import torch


def energy_gradient(
    representations: Iterable[torch.Tensor], ridge: float = 1e-6
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gradient of the whitened energy with respect to a representation, as a function of the representation.

    The whitened energy of an image x with the representation r = R(x) is

        E(x) = ½ Σ_positions (r − µ)ᵀ C⁻¹ (r − µ),

    with µ and C the mean and covariance of the channels over all positions of all probe images: half the squared
    Mahalanobis distance (Mahalanobis 1936, "On the generalised distance in statistics"). Replacing r by A r + b with
    an invertible matrix A and a vector b changes µ and C with it, and E not at all (up to the ridge); the mean of the
    units, which the paper attributes, changes. The gradient of E with respect to r is C⁻¹ (r − µ) at every position;
    multiplied with the Jacobian of R at x it gives the attribution of E, and with the Jacobian at another image x that
    of (R(x) − µ)ᵀ C⁻¹ (r − µ), the similarity of the two images.

    Parameters
    ----------
    representations : iterable of torch.Tensor
        Batches of the probe's representations, float, (image, channel, y, x), or (image, feature), where an image has
        one position. Read once, and not held.
    ridge : float, default 1e-6
        What is added to the diagonal of C, as a share of the channels' mean variance. It keeps C invertible where a
        channel is constant, or where there are fewer positions than channels.

    Returns
    -------
    callable
        Representation, shaped as above → C⁻¹ (r − µ) of the same shape, dtype and device; computed in float64. A
        channel that is constant over the probe gives zero there, and so contributes nothing.

    Raises
    ------
    ValueError
        The channels' mean variance is not positive (all are constant but for the rounding of float32) or not finite,
        or the ridge is so small that C is singular.

    Examples
    --------
    >>> representation = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> energy_gradient([representation])(representation[:1])
    tensor([[2.0000, 0.0000]])
    """
    n, shift = 0, None
    for representation in representations:
        rows = _positions(representation)
        if shift is None:  # sums of small numbers: a mean far from zero costs no digits of the covariance
            shift, total, products = rows.mean(0), 0, 0
        rows = rows - shift
        n, total, products = n + len(rows), total + rows.sum(0), products + rows.T @ rows
    mean, covariance = shift + total / n, products / n - torch.outer(total, total) / n**2
    variance, rounding = covariance.diagonal().mean(), torch.finfo(torch.float32).eps * mean.abs().max()
    if not rounding**2 < variance < torch.inf:
        raise ValueError(
            f"the mean variance of the representation's channels over the probe images is {variance.item():g}: there "
            "is nothing to whiten; use more or other images, or leave out this network"
        )
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * variance * torch.eye(len(mean)).to(covariance))
    if failed:
        raise ValueError(f"the covariance of the representation's channels is singular with ridge {ridge:g}: raise it")

    def gradient(representation):
        solution = torch.cholesky_solve((_positions(representation) - mean).T, factor).T
        return solution.reshape(representation.movedim(1, -1).shape).movedim(-1, 1).to(representation.dtype)

    return gradient


def _positions(representation):
    """float64, (image · y · x, channel)."""
    return representation.movedim(1, -1).flatten(0, -2).to(torch.float64)
