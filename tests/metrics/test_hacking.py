"""What is told of a reward that rises while a check falls."""

import json

from ptjax.metrics.hacking import RewardWatch


def told(rewards, checks, monitors=("format",), name="eval/reward/format", kept=False):
    """What is said at each evaluation; `kept`: by a run that is resumed after each step."""
    watch = RewardWatch(monitors)
    said = []
    for reward, check in zip(rewards, checks, strict=True):
        if kept:
            before, watch = json.dumps(watch.state()), RewardWatch(monitors)
            watch.go_on(json.loads(before))
        watch.trained({"rollout/reward": reward - 0.1})
        watch.trained({"rollout/reward": reward + 0.1, "loss": 0.0})
        watch.trained({"loss": 1.0})
        said.append(watch.measured({name: check, "eval/loss": 0.0}))
    return said


def test_a_check_that_falls_twice_as_the_reward_rises_is_told_once():
    said = told([0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5])
    assert [text is not None for text in said] == [False, False, True, False, False]
    assert "rises (now 0.3) while eval/reward/format fell twice in a row, to 0.7" in said[2]


def test_a_resumed_run_goes_on_watching():
    course = [0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert told(*course, kept=True) == told(*course)


def test_nothing_is_told_where_both_rise_or_both_fall_or_one_wavers():
    assert not any(told([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]))
    assert not any(told([0.4, 0.3, 0.2, 0.1], [0.9, 0.8, 0.7, 0.6]))
    assert not any(told([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.85, 0.8]))


def test_the_reward_itself_is_a_check_on_held_out_prompts():
    assert told([0.1, 0.2, 0.3], [0.9, 0.8, 0.7], (), "eval/rollout/reward")[2]


def test_methods_without_rewards_are_not_watched():
    watch = RewardWatch([])
    watch.trained({"loss": 1.0})
    assert watch.measured({"eval/loss": 1.0}) is None
