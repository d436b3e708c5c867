"""Against a server on this machine that says what its script says."""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import reward
from ptjax.rewards.score import ask


class Stand(ThreadingHTTPServer):
    """Answers with `reply(text) -> (status, text)`, and keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 64  # a connection that finds no place in it waits a second

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.headers, self.reply = [], [], lambda text: (200, "Score: 10")
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self):
        return [body["messages"][0]["content"] for body in self.bodies]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        assert isinstance(server, Stand) and self.path == "/v1/chat/completions"
        server.bodies.append(body)
        server.headers.append(dict(self.headers))
        status, text = server.reply(body["messages"][0]["content"])
        said = json.dumps({"choices": [{"message": {"content": text}}]})
        said = said if status == 200 else text
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(said.encode())))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def stand(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server = Stand()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(stand, texts, name="judge", columns=None, prompts=None, **settings):
    given = {"name": name, "url": stand.url, "model": "m", "key": "MY_KEY", "wait": 0.01}
    prompts = prompts or [f"ask {i}" for i in range(len(texts))]
    return ask([reward({**given, **settings})], prompts, texts, columns or {})[0]


def test_the_last_score_on_the_scale_becomes_a_share(stand):
    said = {
        "a": "Score: 10",
        "b": "score: 2 at first. **Score:** 5.5",
        "c": "fine",
        "d": "Score: 11",
    }
    stand.reply = lambda text: (200, next(v for k, v in said.items() if f">\n{k}\n<" in text))
    found = asked(stand, [*"abcd"])
    assert found[:2] == [1, 0.5]
    assert found[2:] == ["no score in the judge's reply", "the judge's score is not from 1 to 10"]
    assert stand.bodies[0]["model"] == "m" and stand.bodies[0]["temperature"] == 0
    assert asked(stand, ["b"], scale=[0.0, 11.0], body={"temperature": 1}) == [0.5]
    assert stand.bodies[-1]["temperature"] == 1


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: -3", -3),
        ("Score: **-2.5**", -2.5),
        ("**Score:** 2.5/10", 2.5),
        ("Score (-5 to 5): 4", 4),
        ("**Score [-5, 5]**: -1", -1),
        ("Score (4)", 4),
        ("Score (1-10) 3", 3),
        ("Score (1-10): N/A", "no score in the judge's reply"),
        ("Score - 2", 2),
        ("Score: −3", "no score in the judge's reply"),
    ],
)
def test_a_score_has_its_sign_and_is_not_the_scale(stand, reply, score):
    stand.reply = lambda text: (200, reply)
    wanted = (score + 5) / 10 if isinstance(score, int | float) else score
    assert asked(stand, ["x"], scale=[-5.0, 5.0]) == [wanted]


def test_what_is_asked(stand):
    talk = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    columns = {
        "messages": [talk, None],
        "reference": [None, "right one"],
        "criterion": ["Is it kind?", None],
    }
    asked(stand, ["x", "{prompt}"], columns=columns, principles=["Be honest.", "Be kind."])
    first, second = sorted(stand.questions, key=lambda text: "ask 1" in text)
    assert "user: One\n\nassistant: Two" in first and "Is it kind?" in first
    assert "right_answer" not in first and "right one" in second
    assert "- Be honest.\n- Be kind." in first and "a number from 1 to 10" in first
    assert "{prompt}" in second  # what the model says is not filled in
    asked(stand, ["y"], template="Rate {completion} of {prompt} {other}")
    assert stand.questions[-1] == "Rate y of ask 0 {other}"


def test_it_tries_again_and_then_only_that_completion_is_missing(stand):
    seen = Counter()

    def reply(text):
        seen[text] += 1
        if "lost" in text:
            return 503, "busy"
        if "long" in text:
            return 400, "too long for sk-very-secret"
        return (429, "") if seen[text] < 3 else (200, "Score: 1")

    stand.reply = reply
    found = asked(stand, ["late", "lost", "long"], attempts=3)
    assert found[0] == 0 and found[1].startswith("no reply in 3 attempts: 503")
    assert found[2] == "the judge's server says 400: too long for (key)"
    assert sorted(seen.values()) == [1, 3, 3]


def test_replies_are_kept_and_a_damaged_one_is_asked_for_again(stand, tmp_path):
    for _ in range(2):
        assert asked(stand, ["a", "b"], cache=str(tmp_path)) == [1, 1]
    assert len(stand.bodies) == 2
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2 and all("secret" not in path.read_text() for path in kept)
    kept[0].write_text('{"rep')
    assert asked(stand, ["a", "b"], cache=str(tmp_path)) == [1, 1]
    assert len(stand.bodies) == 3
    asked(stand, ["a"], cache=str(tmp_path), model="other")
    assert len(stand.bodies) == 4


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "wrong key sk-very-secret", r"says 401 Unauthorized; look at \$MY_KEY$"),
        (404, "", "says 404 Not Found; look at the url"),
        (302, "http://127.0.0.1:9/stolen", "says 302 Found"),
    ],
)
def test_a_server_that_refuses_all_is_the_users_mistake(stand, status, text, message):
    stand.reply = lambda _: (status, text)
    with pytest.raises(UserError, match=message) as error:
        asked(stand, ["a"])
    assert "secret" not in str(error.value) and len(stand.bodies) == 1


def test_the_key_comes_from_the_environment_or_none_is_sent(stand, monkeypatch):
    asked(stand, ["a"])
    monkeypatch.delenv("MY_KEY")
    asked(stand, ["a"])
    sent = [headers.get("Authorization") for headers in stand.headers]
    assert sent == ["Bearer sk-very-secret", None]


def test_a_judge_who_prefers_a_place_says_neither(stand):
    def reply(text):
        if "biased" in text:
            return 200, "[[A]]"
        if "mute" in text:
            return 200, "hm"
        if "even" in text:
            return 200, "[[C]]"
        return 200, "At first [[C]], no: " + ("[[A]]" if "<answer_a>\ngood" in text else "[[B]]")

    stand.reply = reply
    texts = ["good", "bad", "biased", "even", "mute", "none"]
    columns = {"reference": ["bad", "good", "x", "x", "x", None]}
    found = asked(stand, texts, "judge_pair", columns)
    assert found == [1, 0, 0.5, 0.5, "no verdict in the judge's reply", None]
    assert len(stand.bodies) == 10


def longer(text):
    """The longer answer is the better; one that is `lost` has no verdict."""
    if "lost" in text:
        return 400, "too long"
    a, b = re.findall(r"<answer_[ab]>\n(.*)\n</", text)
    return 200, "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"


def test_answers_to_one_prompt_are_compared_with_each_other(stand):
    stand.reply = longer
    prompts = ["p", "q", "p", "p", "q", "r"]
    found = asked(stand, ["iii", "i", "ii", "iii", "ii", "i"], "judge_group", prompts=prompts)
    assert found == [0.75, 0, 0, 0.75, 1, None]
    assert len(stand.bodies) == 3 + 2  # the same question is asked once
    assert all(text.count("<answer_") == 2 for text in stand.questions)
    columns = {"criterion": ["kind", "short", "kind", "short"]}
    found = asked(stand, ["i", "ii", "iii", "iiii"], "judge_group", columns, prompts=["p"] * 4)
    assert found == [0, 0, 1, 1]
    stand.reply = lambda _: (200, "[[A]]")
    assert asked(stand, ["i", "ii"], "judge_group", prompts=["p"] * 2) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("count", "against", "questions"),
    [
        (8, 8, 56),
        (8, 7, 56),
        (8, 6, 48),
        (8, 3, 16),
        (7, 6, 42),
        (2, 2, 2),
        (8, "first", 14),
    ],
)
def test_what_a_group_asks_is_bounded(stand, count, against, questions):
    stand.reply = longer
    texts = ["i" * (1 + i) for i in range(count)]
    found = asked(stand, texts, "judge_group", prompts=["p"] * count, against=against)
    assert len(stand.bodies) == len(set(stand.questions)) == questions
    assert found[0] == 0 and found[-1] == 1
    if against == "first":
        assert found == [0, *[1] * (count - 1)]
    elif against >= count - 1:
        assert found == pytest.approx([i / (count - 1) for i in range(count)])
    else:
        met = Counter(a for text in stand.questions for a in re.findall(r"\n(i+)\n", text))
        assert {*met.values()} == {2 * (against // 2 * 2)}


def test_a_comparison_that_fails_is_left_out(stand):
    stand.reply = longer
    found = asked(stand, ["i", "lost", "ii"], "judge_group", prompts=["p"] * 3)
    assert found == [0, "the judge's server says 400: too long", 1]
    found = asked(stand, ["lost", "i"], "judge_group", prompts=["p"] * 2, against="first")
    assert found == ["the judge's server says 400: too long"] * 2


@pytest.mark.parametrize("against", [1, "last", True, 2.5])
def test_against_whom_a_group_is_compared(stand, against):
    with pytest.raises(UserError, match="at least 2 or 'first'"):
        asked(stand, ["i"], "judge_group", against=against)


def test_a_rubric_asks_the_judge_about_each_criterion(stand):
    stand.reply = lambda text: (200, "Score: 10" if "kind" in text else "Score: 1")
    judge = {"name": "judge", "url": stand.url, "model": "m"}
    made = reward({"name": "rubric", "reward": judge})
    own = [["Is it kind?", {"criterion": "Is it short?", "weight": 3.0}]]
    assert ask([made], ["p"], ["c"], {"rubric": own})[0] == [0.25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "file:///etc/passwd"}, "http:// or https:// is expected"),
        ({"scale": [10.0, 1.0]}, "the lowest and the highest score"),
        ({"template": "Rate {answer}"}, "has no {completion}"),
        ({"attempts": 0}, "not above 0"),
        ({"concurrency": 0}, "concurrency = 0"),
    ],
)
def test_settings_that_make_no_sense(stand, settings, message):
    with pytest.raises(UserError, match=message):
        asked(stand, ["a"], **settings)
    assert stand.bodies == []
