"""The programs that `make bench` runs, and the table that they left for chapter 17."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "tests" / "benchmarks" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_what_the_chapter_draws():
    table = pd.read_csv(ROOT / "data" / "benchmarks.csv")
    assert set(table.group) == {"attribution", "affinity", "SVCCA", "memory", "start-up"}
    assert table.figure.is_unique and np.isfinite(table.value).all()
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert set(table.rule.dropna()) == {">=", "<="} and (table.rule.notna() == table.target.notna()).all()
    assert table.machine.nunique() == table.torch.nunique() == 1


def test_functions_are_timed_in_turns_after_one_round_that_does_not_count(bench):
    calls = []
    times = bench.side_by_side([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert all(set(calls[k : k + 2]) == set("ab") for k in range(0, 8, 2)) and len(calls) == 8
    assert times.shape == (3, 2) and (times > 0).all()


def test_a_row_is_median_and_quartiles(bench, capsys):
    bench.add("name", "group", [5, 1, 3, 2, 4], "s", "<=", 9)
    (row,) = bench.rows
    assert (row["low"], row["value"], row["high"], row["repeats"]) == (2, 3, 4, 5)
    assert "name" in capsys.readouterr().out


def test_memory_is_that_of_a_process_of_its_own(bench):
    assert 0.1 < bench.peak("small", 2, 3) < 4
