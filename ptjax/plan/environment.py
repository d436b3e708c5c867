"""What jax must be told before it is imported, so that a compiler runs without its devices."""

import os


def no_tpu() -> None:
    """Nor a GPU. Sets the process's environment; what it says already stays."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second plan finds it locked
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # any: else it complains
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # it cannot be read back
