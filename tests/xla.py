"""How the tests' programs are compiled, in this process and in those it starts."""

from tests.full import FULL


def flags(devices: int = 1) -> str:
    """Of `XLA_FLAGS`: so many virtual devices.

    The compiler's own way to generate code for fusions takes it twice the time that the older one
    takes: `PTJAX_FULL=1` has it.
    """
    quick = "" if FULL else " --xla_cpu_use_fusion_emitters=false"
    return f"--xla_force_host_platform_device_count={devices}{quick}"
