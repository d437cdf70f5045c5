"""The table of tasks: what stands in a row goes together."""

import pytest

from dalle_mini.training.tasks import TASKS, task_of
from tiny_runs import NAMES, make, short_loop


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_of_one_network(name):
    task = TASKS[name]
    run = task.config()
    assert task_of(run) is task
    assert task.build_run({}, ["loop.steps=3"]).loop.steps == 3
    assert type(run.training) is task.training
    assert type(run.training.network) is task.network.config_class


@pytest.mark.parametrize("name", NAMES)
def test_a_row_stands_under_its_trainers_name(name, tmp_path):
    trainer = make(name, tmp_path, short_loop())
    assert TASKS[trainer.name].training is type(trainer.config)
