"""Scores with labels, against the definitions written out."""

import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from support import supervised

RNG = np.random.default_rng(0)


def standardised(values):
    return (values - values.mean(0)) / values.std(0)


@pytest.mark.parametrize("n_features", [3, 30])
def test_logme_is_the_maximum_of_the_gaussian_evidence(n_features):
    """The evidence is a normal density with covariance F Fᵀ / α + 1 / β, across the constant; an optimiser finds its
    maximum."""
    features = RNG.normal(size=(20, n_features))
    labels = features[:, :2] @ RNG.normal(size=(2, 2)) + 2 * RNG.normal(size=(20, 2))
    across = null_space(np.ones((1, 20))).T
    f, y = across @ standardised(features), across @ standardised(labels)

    def evidence(logarithms, output):
        alpha, beta = np.exp(logarithms)
        return multivariate_normal.logpdf(output, np.zeros(19), f @ f.T / alpha + np.eye(19) / beta)

    best = [
        -minimize(
            lambda p, o=o: -evidence(p, o), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}
        ).fun
        / 19
        for o in y.T
    ]
    assert supervised.logme(features, labels) == pytest.approx(np.mean(best), abs=1e-5)


def test_logme_forgives_shifts_and_scales_and_takes_classes_one_against_the_rest():
    features, classes = RNG.normal(size=(30, 4)), np.arange(30) % 3
    once = supervised.logme(features, classes)
    assert supervised.logme(features * 1e200 + 1e200, np.eye(3)[classes] * 7 - 2) == pytest.approx(once, abs=1e-3)
    assert supervised.logme(features, np.eye(3)[classes]) == once


def test_h_score_counts_the_directions_that_tell_classes_apart():
    classes = np.repeat([0, 1, 2], 20)
    apart = np.eye(3)[classes][:, :2] + 1e-6 * RNG.normal(size=(60, 2))
    assert supervised.h_score(apart, classes) == pytest.approx(2, abs=1e-6)
    assert supervised.h_score(RNG.normal(size=(60, 2)), classes) < 0.3
    mixing = RNG.normal(size=(2, 2))
    noisy = np.eye(3)[classes][:, :2] + RNG.normal(size=(60, 2))
    assert supervised.h_score(noisy @ mixing, classes) == pytest.approx(supervised.h_score(noisy, classes))


def test_leep_and_nce_by_hand():
    given = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    of_z = given.sum(0)  # P(y = 0 | z) is the share of z that samples 0 and 1 hold
    first = given[:2].sum(0) / of_z
    expected = np.log([given[0] @ first, given[1] @ first, given[2] @ (1 - first)]).mean()
    assert supervised.leep(given, [0, 0, 1]) == pytest.approx(expected)
    source, target = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    entropy = 3 / 4 * (2 / 3 * np.log(3 / 2) + 1 / 3 * np.log(3))
    assert supervised.nce(source, target) == pytest.approx(-entropy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: supervised.logme(np.ones((4, 2)), np.arange(4.0)[:, None]), "features are the same"),
        (lambda: supervised.logme(np.full((4, 2), np.nan), [0, 1, 0, 1]), "features are not finite at"),
        (lambda: supervised.logme(RNG.normal(size=(4, 2)), [0, 0, 0, 0]), "one class"),
        (lambda: supervised.logme(RNG.normal(size=(4, 2)), np.zeros((3, 1)) + RNG.normal(size=(3, 1))), "4 samples"),
        (lambda: supervised.h_score(RNG.normal(size=(4, 5)), [0, 1, 0, 1]), "needs fewer features"),
        (lambda: supervised.leep([[2.0, 1.0], [0.5, 0.5]], [0, 1]), "softmax"),
        (lambda: supervised.leep([[0.5, 0.5]], [0, 1]), "expected one row each"),
        (lambda: supervised.nce([0, 1], [0.5, 0.5]), "expected integers"),
    ],
)
def test_what_has_no_score_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
