"""The cost model, the race and the fit; no test depends on how fast the machine is."""

import itertools

import numpy as np
import pytest

from support import oracle
from support.bank import work
from support.chapters import efficiency


def test_the_cost_model_counts_passes():
    epochs, n_training, n_models, n_images = 3, 50, 4, 10
    by_transfers = sum(epochs * n_training for _ in itertools.permutations(range(n_models), 2))
    assert efficiency.speedup(epochs, n_training, n_models, n_images) == by_transfers / (n_models * n_images)
    assert efficiency.speedup(1, 16_000, 20, 1_000) == 304
    for wrong in ((0, 1, 2, 1), (1, 0, 2, 1), (1, 1, 1, 1), (1, 1, 2, 0)):
        with pytest.raises(ValueError, match="positive numbers, and two networks"):
            efficiency.speedup(*wrong)


def test_the_race_is_over_the_whole_bank(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(ticks))  # everything takes one second
    race = efficiency.race(2, method="gradient_x_input")
    plan = work.FULL
    assert (race.n_models, race.n_images) == (20, 2)
    assert race.n_transfers == int(oracle.load("bank", seed=0).notnull().sum()) == 342
    assert (race.maps, race.affinity, race.svcca) == (1, 1, 1)
    assert race.features == plan.n_transfer / (2 * plan.batch) and race.head == 10
    assert race.transfers == 342 * race.head + 20 * race.features
    assert race.ratio == race.transfers / 2
    assert race.epochs * race.n_training == plan.head_steps * plan.batch
    square = race._replace(n_transfers=20 * 19)  # if all tasks were targets
    assert square.predicted == pytest.approx(efficiency.speedup(race.epochs, race.n_training, 20, 2))


def test_least_of_several_calls(monkeypatch):
    ticks = iter([0, 5, 10, 12, 20, 24])
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(ticks))
    results = iter("abc")
    assert efficiency.timed(next, results, repeats=3) == (2, "c")


def test_exponent_of_a_power_law():
    sizes = np.array([8, 16, 64, 100])
    for power in (0.0, 1.0, 2.5):
        assert efficiency.exponent(sizes, 0.3 * sizes**power) == pytest.approx(power, abs=1e-12)
    assert 0.5 < efficiency.exponent(sizes, 20 + sizes) < 1  # a part that does not grow
    for wrong in (([1, 1], [1, 2]), ([1, 2], [0, 1]), ([1, 2], [1, 2, 3]), ([-1, 2], [1, 2])):
        with pytest.raises(ValueError, match="power law"):
            efficiency.exponent(*wrong)
