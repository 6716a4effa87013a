"""What labels would buy: scores of a source's features that need labels of the target, but no training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

ITERATIONS = 100  # of LogME's fixed point, which needs about ten
TOLERANCE = 1e-6  # relative change of both precisions at which it has come to rest
LEAST = 1e-12  # of a sum of squares, so that no precision is infinite


def logme(features: Any, labels: Any) -> float:
    """Logarithm of the maximum evidence of the labels, given the features.

    You et al. (2021), "LogME: practical assessment of pre-trained models for transfer learning", Section 4: labels are
    a linear function of the features, with Gaussian weights of precision α, plus Gaussian noise of precision β. The
    evidence is maximised over α and β by their fixed point, and divided by the number of samples less one: the mean is
    taken off beforehand, which leaves so many degrees of freedom.

    Parameters
    ----------
    features : array
        (samples, features), real. They are centred and scaled to variance 1; constant ones are left out.
    labels : array
        (samples, outputs) real, or (samples,) integers, which are classes and taken one against the rest. Outputs are
        centred and scaled to variance 1; constant ones are left out.

    Returns
    -------
    float
        Mean over the outputs, in nats per sample; higher is better.

    Raises
    ------
    ValueError
        Other shapes, different or fewer than 2 samples, values that are not finite, or nothing that varies.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> logme(x, x @ [[1.0], [2.0], [0.5]]) > logme(x, x[::-1, :1])
    True
    """
    features, labels = _pair(features, labels)
    freedom, n_features = len(features) - 1, features.shape[1]
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares = singular**2
    return float(np.mean([_evidence(squares, left.T @ y, y @ y, freedom, n_features) for y in labels.T]))


def _evidence(squares, projected, length, freedom, n_features):
    """Maximum log evidence per sample of one output; `squares` are the eigenvalues of the features' products."""
    inside = projected**2
    outside = max(length - inside.sum(), 0)
    alpha = beta = 1.0
    for _ in range(ITERATIONS):
        ratio = alpha / beta
        effective = (squares / (squares + ratio)).sum()
        weights = (squares * inside / (squares + ratio) ** 2).sum()
        missed = (inside * (ratio / (squares + ratio)) ** 2).sum() + outside
        before = alpha, beta
        alpha, beta = effective / max(weights, LEAST), max(freedom - effective, LEAST) / max(missed, LEAST)
        if np.allclose(before, (alpha, beta), rtol=TOLERANCE, atol=0):
            break
    determinant = np.log(alpha + beta * squares).sum() + (n_features - len(squares)) * np.log(alpha)
    fit = n_features * np.log(alpha) + freedom * np.log(beta / (2 * np.pi)) - beta * missed - alpha * weights
    return (fit - determinant) / (2 * freedom)


def h_score(features: Any, classes: Sequence[int]) -> float:
    """How much of the features' variance lies between classes.

    Bao et al. (2019), "An information-theoretic approach to transferability in task transfer learning", equation (7):
    tr(cov(f)⁻¹ cov(E[f | y])), with the pseudo-inverse of the covariance.

    Parameters
    ----------
    features : array
        (samples, features), real, fewer features than samples.
    classes : array
        (samples,), integers.

    Returns
    -------
    float
        From 0 to the number of classes less one; higher is better.

    Raises
    ------
    ValueError
        Other shapes, different samples, fewer than two classes, as many features as samples, or values that are not
        finite.

    Examples
    --------
    >>> h_score([[0.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1])
    1.0
    """
    classes = _classes(classes)
    features, _ = _pair(features, classes)
    if features.shape[1] >= len(features):
        raise ValueError(f"{features.shape[1]} features of {len(features)} samples: the H-score needs fewer features")
    means = np.stack([features[classes == c].mean(0) for c in np.unique(classes)])
    between = means[np.unique(classes, return_inverse=True)[1]]
    return float(np.trace(np.linalg.pinv(features.T @ features, hermitian=True) @ (between.T @ between)))


def leep(probabilities: Any, classes: Sequence[int]) -> float:
    """Mean log likelihood of the classes under the source's own classes.

    Nguyen et al. (2020), "LEEP: a new measure to evaluate transferability of learned representations", Section 3: the
    source's probabilities of its own classes z, times the empirical P(y | z).

    Parameters
    ----------
    probabilities : array
        (samples, source classes), each row sums to 1.
    classes : array
        (samples,), integers: of the target.

    Returns
    -------
    float
        In nats, at most 0; higher is better.

    Raises
    ------
    ValueError
        Other shapes, different samples, fewer than two classes, or rows that are no probabilities.

    Examples
    --------
    >>> round(leep([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1, 1]), 6)
    0.0
    """
    classes = _classes(classes)
    given = np.asarray(probabilities, np.float64)
    if given.ndim != 2 or len(given) != len(classes):
        raise ValueError(
            f"probabilities have the shape {given.shape} for {len(classes)} samples, expected one row each"
        )
    if not (given >= 0).all() or not np.allclose(given.sum(1), 1, atol=1e-5):
        raise ValueError("probabilities must not be negative, and every row must sum to 1: apply a softmax first")
    of_class = np.eye(classes.max() + 1)[classes]
    joint = of_class.T @ given
    conditional = joint / np.maximum(joint.sum(0), LEAST)
    return float(np.log((given @ conditional.T)[np.arange(len(classes)), classes]).mean())


def nce(source_classes: Sequence[int], classes: Sequence[int]) -> float:
    """Negative conditional entropy of the target's classes, given the source's.

    Tran et al. (2019), "Transferability and hardness of supervised classification tasks", Section 3: −H(y | z) of the
    empirical distribution. It is LEEP with probabilities of 0 and 1.

    Parameters
    ----------
    source_classes, classes : array
        (samples,), integers.

    Returns
    -------
    float
        In nats, at most 0; higher is better.

    Raises
    ------
    ValueError
        As for `leep`.

    Examples
    --------
    >>> round(nce([0, 0, 1, 1], [0, 1, 0, 1]), 4)
    -0.6931
    """
    return leep(np.eye(max(source_classes) + 1)[_classes(source_classes, fewest=1)], classes)


def _classes(classes, fewest=2):
    classes = np.asarray(classes)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or not classes.size or classes.min() < 0:
        raise ValueError(f"classes have the shape {classes.shape} and type {classes.dtype}, expected integers from 0")
    if len(np.unique(classes)) < fewest:
        raise ValueError("all samples are of one class, so that nothing can be told apart")
    return classes


def _pair(features, labels):
    """Centred, scaled features and outputs, float64, without constant ones."""
    labels = np.asarray(labels)
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        labels = np.eye(_classes(labels).max() + 1)[labels]
    found = []
    for what, values in (("features", np.asarray(features)), ("labels", labels)):
        if values.ndim != 2 or values.dtype.kind not in "fiub" or len(values) < 2:
            raise ValueError(
                f"{what} have the shape {values.shape} and type {values.dtype}, expected (samples, numbers)"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{what} are not finite at {np.argwhere(~np.isfinite(values))[0].tolist()}")
        values = values / max(np.abs(values).max(), np.finfo(np.float64).tiny)
        values = values - values.mean(0)
        deviation = np.sqrt((values**2).mean(0))
        if not (deviation > LEAST).any():
            raise ValueError(f"{what} are the same for all samples, so that nothing can be told apart")
        found.append(values[:, deviation > LEAST] / deviation[deviation > LEAST])
    if len(found[0]) != len(found[1]):
        raise ValueError(f"there are features of {len(found[0])} samples and labels of {len(found[1])}")
    return found
