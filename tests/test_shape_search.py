from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttgraph.data import planted_hierarchy
from ttgraph.shape import TTShape
from ttgraph.train import Interrupted, TrainConfig, train
from ttgraph.train.embedding import plan_shape
from ttgraph.train.shape_search import candidate_row_factors, choose_row_factors

AUTO = TrainConfig(row_factors="auto", rank=8, dim=16, hidden=8, layers=2, epochs=4)


@given(num_nodes=st.integers(2, 200_000_000))
def test_candidates_hold_the_nodes(num_nodes):
    shapes = candidate_row_factors(num_nodes)
    assert len(set(shapes)) == len(shapes)
    assert all(math.prod(shape) >= num_nodes for shape in shapes)
    assert {len(shape) for shape in shapes} == {2, 3, 4}
    assert TTShape.plan(num_nodes, 8).row_factors in shapes


def test_every_shape_has_the_budget_and_half_of_the_epochs():
    trials = []
    chosen = choose_row_factors(AUTO, 3000, lambda trial: trials.append(trial) or {"val": 0.1 * len(trial.row_factors)})
    budget = TTShape.plan(3000, 16, rank=8).num_params
    assert {trial.epochs for trial in trials} == {2}
    assert {trial.max_params for trial in trials} == {budget}
    assert all(plan_shape(trial, 3000).num_params <= budget for trial in trials)
    assert len(chosen.row_factors) == 4
    assert chosen == replace(AUTO, row_factors=chosen.row_factors, max_params=budget)
    assert choose_row_factors(replace(AUTO, max_params=500), 3000, lambda trial: {"val": 1}).max_params == 500


def test_no_trial_is_done_twice(tmp_path):
    trials = []

    def stopped(trial):
        if len(trials) == 2:
            raise Interrupted("stopped after epoch 1")
        trials.append(trial)
        return {"val": 0.5}

    config = replace(AUTO, out=tmp_path)
    with pytest.raises(Interrupted, match="row factors .*: stopped after epoch 1; the trials before it are kept"):
        choose_row_factors(config, 3000, stopped)
    more = []
    chosen = choose_row_factors(config, 3000, lambda trial: more.append(trial) or {"val": 0.4})
    assert len(trials) + len(more) == len(candidate_row_factors(3000))
    assert chosen.row_factors == trials[0].row_factors


def test_a_budget_for_nobody():
    with pytest.raises(ValueError, match="no shape fits into max_params=3; raise it, or pass row_factors"):
        choose_row_factors(replace(AUTO, max_params=3), 3000, lambda trial: {"val": 1})


def test_training_takes_the_chosen_shape_and_other_tables_choose_nothing():
    data = planted_hierarchy(
        600, num_classes=4, branching=(8, 4), level_shares=(0.3, 0.7), label_level=0, train_fraction=0.2, seed=0
    )
    summary = train(AUTO, data).summary
    assert tuple(summary["row_factors"]) in candidate_row_factors(600)
    assert train(replace(AUTO, embedding="full"), data).summary["config"]["row_factors"] is None
    result = train(replace(AUTO, row_factors=None), data)
    with pytest.raises(ValueError, match="row_factors=auto makes orders of its own"):
        train(AUTO, data, result.order)
    with pytest.raises(ValueError, match="row_factors=auto is a choice that training makes"):
        plan_shape(AUTO, 600)
