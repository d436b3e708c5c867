"""Asks an OpenAI-compatible server: retries, back-off, a cache on disk; the key is never shown."""

import hashlib
import http.client
import json
import os
import random
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.rewards.base import Failed

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_NEVER = {301, 302, 303, 307, 308, 401, 403, 404, 405}
_LONGEST_WAIT = 60.0
_MOST_BYTES = 16 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> None:
        """Follows none."""


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class ChatServer:
    """Where questions go.

    Attributes:
      url: up to `/chat/completions`, which is added: `https://api.openai.com/v1`.
      key: the environment variable that holds the API key; none is sent where it is not set.
      attempts: before a question fails.
      timeout: seconds that an attempt may take.
      wait: seconds before the second attempt; they double, times 0.5 to 1.5 at random, to a minute.
      cache: a folder of answers by question; None: none is kept.
    """

    url: str
    key: str
    attempts: int
    timeout: float
    wait: float
    cache: str | None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"judge: url = {self.url!r}; http:// or https:// is expected")
        if self.attempts < 1 or self.timeout <= 0:
            raise UserError(f"judge: attempts={self.attempts}, timeout={self.timeout}: not above 0")

    def reply(self, body: Mapping[str, Any]) -> str:
        """The text of the answer.

        Args:
          body: the request: `model`, `messages` and what else the server takes.

        Raises:
          Failed: no answer after all attempts, or none to this question.
          UserError: what no other attempt and no other question would mend.
        """
        kept = self._kept(body)
        if kept is not None and kept.exists():
            try:
                return str(json.loads(kept.read_text())["reply"])
            except (ValueError, KeyError, OSError):
                pass  # a damaged one is asked for again
        text = self._asked(body)
        if kept is not None:
            _write(kept, json.dumps({"reply": text}))
        return text

    def _asked(self, body: Mapping[str, Any]) -> str:
        """The reply to the first attempt that has one."""
        attempt = 1
        while True:
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                reason, after = self._judged(error), error.headers.get("Retry-After", "")
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                LookupError,
                TypeError,
            ) as error:
                reason, after = f"{type(error).__name__}: {error}", ""
            if attempt == self.attempts:
                raise Failed(f"no reply in {attempt} attempts: {self._without_key(reason)}")
            wait = self.wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            time.sleep(min(max(wait, float(after) if after.isdigit() else 0), _LONGEST_WAIT))
            attempt += 1

    def _post(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        with _OPENER.open(request, timeout=self.timeout) as response:
            said = json.loads(response.read(_MOST_BYTES))
        text = said["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("a reply without text")
        return text

    def _judged(self, error: urllib.error.HTTPError) -> str:
        """Why a status is worth another attempt.

        Raises:
          Failed: it is not, for this question.
          UserError: it is not, for any.
        """
        with error:
            if error.code in _NEVER:
                hint = f"; look at ${self.key}" if error.code in (401, 403) else "; look at the url"
                raise UserError(f"judge: {self.url} says {error.code} {error.reason}{hint}")
            said = error.read(500).decode(errors="replace")
        if error.code not in _AGAIN:
            raise Failed(f"the judge's server says {error.code}: {self._without_key(said)}")
        return f"{error.code} {error.reason}"

    def _without_key(self, text: str) -> str:
        secret = os.environ.get(self.key)
        return text.replace(secret, "(key)") if secret else text

    def _kept(self, body: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        asked = json.dumps([self.url, body], sort_keys=True)
        return Path(self.cache) / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _write(path: Path, text: str) -> None:
    """Whole or not at all; several processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
