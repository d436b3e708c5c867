"""What runs inside a sandbox, with nothing but the standard library.

`init` is its process 1; `program`, `calls` and `judge` are what it starts. They are scripts of one
folder, not modules of ptjax: no other part imports them, except for `wire`, which both sides speak.

Most programs take less time than an interpreter takes to start, so `init`, `watch` and `program`
import little: no `json`, `re`, `typing`, `signal`, `selectors`, and what they import by need.
"""
