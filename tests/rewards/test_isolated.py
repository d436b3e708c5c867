import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Reward, reward
from ptjax.rewards.score import ask

CODE = """
import os, time

def risky(prompts, completions, kind, *, most=1.0):
    if kind[0] == "die":
        os.abort()
    if kind[0] == "hang":
        time.sleep(60)
    return [None if kind[0] == "abstain" else most * len(completions[0])]
"""


def test_only_the_completion_that_it_died_on_is_missing(tmp_path, monkeypatch):
    (tmp_path / "my_risk.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    made = reward(
        {"name": "isolated", "reward": {"name": "my_risk.risky", "most": 2.0}, "seconds": 1.0}
    )
    columns = {"kind": ["fine", "die", "hang", "abstain", "fine"], "other": [object()] * 5}
    found = ask([made], ["p"] * 5, ["a", "b", "c", "d", "eee"], columns)[0]
    assert found == [2.0, "its process died", "took over 1 s", None, 6.0]


def test_what_no_process_can_be_given():
    settings = {"words": {"a"}}
    inner = Reward("contains", reward({"name": "contains"}).function, 1.0, settings)
    made = Reward(
        "isolated",
        reward({"name": "isolated", "reward": "format"}).function,
        1.0,
        {"reward": inner},
    )
    with pytest.raises(UserError, match="reward isolated: contains: .*not JSON serializable"):
        ask([made], ["p"], ["c"], {})
    limited = {"name": "isolated", "reward": {"name": "format", "time_limit": 1.0}}
    with pytest.raises(UserError, match="set 'seconds', not its time_limit"):
        ask([reward(limited)], ["p"], ["c"], {})
