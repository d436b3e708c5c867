"""A reason is told once, the most frequent first, and a run is not flooded with them."""

from collections import Counter

from ptjax.rewards.failures import LINES, Reasons


def test_a_reason_is_told_once():
    reasons = Reasons()
    failed = Counter({"math: took over 5 s": 3, "judge: no": 5, "a: x": 1, "b: y": 1})
    told = reasons.tell(failed, 64, "answers")
    assert told is not None and "on some of 64 answers: 5 x judge: no, 3 x math: took" in told
    assert "b: y" not in told and reasons.tell(failed, 64, "answers") is None
    assert reasons.tell(Counter({"judge: no": 1}), 64, "answers") is None
    assert reasons.tell(Counter({"judge: no": 1}), 8, "held-out answers") is not None
    assert reasons.tell(Counter({"judge: no": 1, "c: z": 1}), 64, "answers") is not None
    assert Reasons().tell(Counter(), 64, "answers") is None


def test_reasons_that_are_never_alike_end():
    reasons = Reasons()
    told = [reasons.tell(Counter({f"judge: {i}": 1}), 8, "answers") for i in range(LINES + 5)]
    assert None not in told[:LINES] and told[LINES:] == [None] * 5
    assert told[0].endswith("(each reason is told once)")
    assert told[LINES - 1].endswith("(no further reason is told)")
