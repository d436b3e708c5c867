"""What one process asks another: answers, whoever knows no token, one that is gone."""

import pickle

import jax
import pytest

from ptjax.errors import UserError
from ptjax.hosts import exchange, peers
from tests.two import free_port


@pytest.fixture
def as_first(monkeypatch):
    """This process is the first of two; given where the second is, it gets a way to ask."""
    monkeypatch.setattr(exchange, "from_each", lambda ask: [ask()])
    monkeypatch.setattr(jax, "process_index", lambda: 0)

    every = []

    def made(place, answer=bytes.upper):
        server = peers._server()
        monkeypatch.setattr(
            peers, "_places", lambda: [peers._Place("127.0.0.1", server.port, server.token), place]
        )
        every.append(peers.Peers(answer))
        return every[-1]

    yield made
    for one in every:
        one.close()


def test_answers_by_process(as_first):
    server = peers._server()
    ask = as_first(peers._Place("localhost", server.port, server.token))
    other = as_first(peers._Place("127.0.0.1", server.port, server.token), lambda b: b[::-1])
    copy = pickle.loads(pickle.dumps(ask))
    for one in (ask, copy):
        assert one.ask({}) == {}
        assert one.ask({0: b"a" * 300_000, 1: b"yes"}) == {0: b"A" * 300_000, 1: b"YES"}
    copy.close()
    assert other.ask({1: b"yes"}) == {1: b"sey"}


def test_where_a_connection_breaks_it_asks_again(as_first):
    server = peers._server()
    asked = []

    def answer(question):
        asked.append(question)
        if len(asked) == 1:
            raise OSError
        return question.upper()

    ask = as_first(peers._Place("127.0.0.1", server.port, server.token), answer)
    assert ask.ask({1: b"yes"}) == {1: b"YES"}
    assert asked == [b"yes", b"yes"]


def test_who_knows_no_token_is_told_nothing(as_first):
    ask = as_first(peers._Place("127.0.0.1", peers._server().port, "0" * 32))
    with pytest.raises(OSError):
        ask.ask({1: b"yes"})


def test_one_that_cannot_be_reached_is_named(as_first):
    port = free_port()
    with pytest.raises(UserError, match=f"process 0 cannot reach process 1 at 127.0.0.1:{port} "):
        as_first(peers._Place("127.0.0.1", port, ""))
