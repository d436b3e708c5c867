"""Programs that nobody has read, run where they can do no harm; see docs/code_sandbox.md."""
