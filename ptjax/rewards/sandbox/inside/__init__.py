"""What runs inside a sandbox, with nothing but the standard library.

`init` is its process 1; `program` and `judge` are what it starts. They are scripts of one folder,
not modules of ptjax: no other part imports them, except for `wire`, which both sides speak.
"""
