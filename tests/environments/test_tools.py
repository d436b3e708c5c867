"""Calls in a text are answered with results, failures with their reason."""

import pytest

from ptjax.environments.base import TIME_LIMIT, environment
from ptjax.environments.tools import Tools
from ptjax.errors import UserError


def shout(text, times=1):
    return text.upper() * times


def fails(text):
    raise RuntimeError("out of order")


OWN = ["calculator", "tests.environments.test_tools.shout", "tests.environments.test_tools.fails"]


def call(name, arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def test_calls_are_answered_in_their_order():
    text = "so " + call("calculator", '{"expression": "3*4"}') + " and"
    text += call("shout", '{"text": "a", "times": 2}')
    assert Tools(tools=OWN).step(text).said == "12\nAA"


def test_a_turn_without_a_call_is_the_last():
    assert Tools(tools=OWN).step("the answer is 12").said is None


def test_a_closing_tag_may_be_a_stop_string():
    assert Tools(tools=OWN).step(call("shout", '{"text": "a"}')[:-12]).said == "A"
    assert Tools(tools=OWN, form="tag").step("is <calculator>3*4").said == "12"


def test_tags_call_with_one_text():
    said = Tools(tools=OWN, form="tag").step("<shout> b </shout><calculator>1+1</calculator>").said
    assert said == "B\n2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (call("calcluator", "{}"), "error: no tool 'calcluator'; did you mean 'calculator'?"),
        (call("fails", '{"text": "a"}'), "error: out of order"),
        (call("shout", '{"words": "a"}'), "error: .*unexpected keyword"),
        ("<tool_call>nothing</tool_call>", "error: a call is JSON"),
        (call("calculator", '{"expression": "1/0"}'), "error: division by zero"),
    ],
)
def test_what_fails_says_why(text, reason):
    import re

    assert re.match(reason, Tools(tools=OWN).step(text).said)


def test_a_long_result_is_cut():
    assert Tools(tools=OWN, most=5).step(call("shout", '{"text": "abcdefgh"}')).said == "ABCDE"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("toolz", "did you mean 'tools'"),
        ({"name": "tools", "tool": []}, "did you mean 'tools'"),
        ({"name": "tools", "tools": []}, "a list of names"),
        ({"name": "tools", "tools": ["calc"]}, "unknown 'calc'"),
        ({"name": "tools", "form": "xml"}, "form 'xml'"),
        ({"name": "tools", "most": 0}, "at least 1"),
        ({"name": "tools", "time_limit": 0}, "time_limit = 0; it must be above 0"),
        ({"name": "tools", "time_limit": "9"}, "time_limit = '9'; seconds or None"),
        (3, "a name, or a dict"),
        ("math.sqrt", r"has no reset\(\)"),
    ],
)
def test_a_mistake_in_a_config_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        environment(given)


def test_each_answer_has_an_environment_of_its_own():
    make = environment({"name": "tools", "tools": ["calculator"]})
    assert make() is not make() and make.time_limit == TIME_LIMIT
    assert environment({"name": "tools", "time_limit": None}).time_limit is None
