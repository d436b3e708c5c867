"""Commands keep what they compile, and a cut entry costs one compilation and no warning."""

import os
import subprocess
import sys
import warnings

import jax
import pytest

from ptjax.generate import __main__ as generate
from ptjax.programs import keep_programs

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from ptjax.programs import keep_programs

keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).sum())
"""


def folder_of_jax():
    return jax.config.values["jax_compilation_cache_dir"]


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    """As where the user set none; jax's setting and the warnings' hook come back afterwards."""
    before = folder_of_jax()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield str(tmp_path / "ptjax" / "xla")
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_the_user_set_stays(no_folder, monkeypatch):
    before = folder_of_jax()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    keep_programs()
    assert folder_of_jax() == before


def test_chatting_keeps_its_programs(no_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate", "no-such-model", "--prompt=hi"])
    with pytest.raises(Exception, match="no-such-model"):
        generate.main()
    assert folder_of_jax() == no_folder


def test_an_entry_that_a_kill_cut_is_removed_and_written_anew(tmp_path):
    def run():
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr, {p.name: p.read_bytes() for p in tmp_path.glob("*-cache")}

    said, _, kept = run()
    (name,) = (name for name in kept if name.startswith("jit__lambda"))
    (tmp_path / name).write_bytes(kept[name][:-40])
    again, warned, mended = run()
    assert again == said
    assert "compilation cache" not in warned
    assert len(mended[name]) > len(kept[name]) - 40
    assert run()[2] == mended
