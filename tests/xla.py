"""How the tests' programs are compiled, in this process and in those it starts."""

from tests.full import FULL

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def flags(devices: int = 1) -> str:
    """Of `XLA_FLAGS`: so many virtual devices.

    The compiler's own way to generate code for fusions takes it twice the time that the older one
    takes, and one module a program takes it four fifths of what many take: `PTJAX_FULL=1` has both
    as they are by default.
    """
    quick = "" if FULL else f" {QUICK}"
    return f"--xla_force_host_platform_device_count={devices}{quick}"
