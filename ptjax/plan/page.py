"""A plan as one page of markdown: what the terminal shows and `plan.md` holds."""

from collections.abc import Iterable, Sequence
from typing import Any

GIB, MIB = 2**30, 2**20
Row = Sequence[object]


def page(plan: dict[str, Any]) -> str:
    """Writes a plan out."""
    topology, chip, batch = plan["topology"], plan["chip"], plan["batch"]
    several = f" x {topology['slices']} slices" if topology["slices"] > 1 else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    counts = plan["parameters"]
    rows = "pack" if "pack" in batch else "tokens"
    parts = [
        f"# {plan['method']} of {plan['model']} on {topology['name']}{several}",
        verdict(plan),
        _table(
            ("", ""),
            [
                ("devices", f"{topology['devices']} x {chip['kind']}; mesh {mesh}"),
                ("parameters", f"{counts['all']:,}, of them {counts['trained']:,} trained"),
                ("a step", f"tokens {batch['tokens']}; rows of the model {batch[rows]}"),
            ],
        ),
        "## On a device for the whole run, GiB",
        _table(
            ("what", "GiB"),
            [
                *((name, _gib(size)) for name, size in plan["resident"].items()),
                ("together", _gib(sum(plan["resident"].values()))),
            ],
        ),
        "## Programs, GiB of a device",
        _table(
            (
                "program",
                "runs for",
                "arguments",
                "temporaries",
                "activations",
                "donated",
                "KV cache",
                "peak",
                "beside it",
                "together",
                "left",
            ),
            map(_memory, plan["programs"]),
        ),
        "Peak: arguments, temporaries and results, what is donated once, or the compiler's own "
        "account where that is more; of a refused program, what its message says. Beside it lies "
        "what of the run it is not given. Donated: bytes that results take over, of those that "
        "they should. Activations: of the temporaries, what layers keep for their backward pass.",
    ]
    hosted = [one for one in plan["programs"] if one["memory"] and one["memory"]["host"]]
    if hosted:
        sizes = ", ".join(map(_on_host, hosted))
        parts.append(f"In the host's memory, of each device: {sizes}.")
    sent = [
        (
            one["name"],
            each["kind"],
            "slices" if each["between_slices"] else "links",
            f"{each['times']:,}",
            f"{each['sent'] / MIB:,.1f}",
        )
        for one in plan["programs"]
        for each in one["collectives"]
    ]
    parts.append("## Sent between devices, a run of the program")
    head = ("program", "collective", "over", "times", "MiB that a device sends")
    parts.append(_table(head, sent) if sent else "Nothing.")
    parts.append("## Largest values of each program")
    parts.append(
        _table(
            ("program", "value", "shape on a device", "MiB"),
            [
                (one["name"], _named(each), f"`{each['shape']}`", f"{each['size'] / MIB:,.1f}")
                for one in plan["programs"]
                for each in one["largest"]
            ],
        )
    )
    parts.append("## Milliseconds at least: a model, not a measurement")
    limits = ("compute", "memory", "links", "slices")
    parts.append(
        _table(
            ("program", "TFLOP of all devices", "and again", *limits, "bound by"),
            [
                (
                    one["name"],
                    f"{one['flops_of_all_devices'] / 1e12:,.3g}",
                    f"{one['flops_again'] / 1e12:,.3g}",
                    *(_ms(one["roofline_model"][name]) for name in limits),
                    one["roofline_model"]["bound"] or "-",
                )
                for one in plan["programs"]
            ],
        )
    )
    parts.append("## Assumed")
    parts.append("\n".join(f"- {line}" for line in plan["assumed"]))
    return "\n\n".join(parts) + "\n"


def search_page(found: dict[str, Any]) -> str:
    """What a search came to: the settings as flags, why, and what was tried."""
    trials = [
        (", ".join(f"{k} {v}" for k, v in one["changes"].items()), _gib(one["need"]), one["fits"])
        for one in found["trials"]
    ]
    flags = " ".join(f"--config.{path}={v}" for path, v in (found["changes"] or {}).items())
    parts = ["# Found", f"`{flags}`" if flags else "Nothing that was tried fits."]
    if found["why"]:
        parts.append("\n".join(f"- {line}" for line in found["why"]))
    if found["skipped"]:
        parts.append("Not tried:\n\n" + "\n".join(f"- {line}" for line in found["skipped"]))
    allowed = f"at most {found['longest_allowed']:,}, by the model's positions"
    longest = f"{found['longest']:,} tokens" if found["longest"] else "none that was tried fits"
    parts.append(f"The longest {found['longest_of']}: {longest} ({allowed}).")
    parts.append(_table(("tried", "GiB of a device", "fits"), trials))
    return "\n\n".join(parts) + "\n"


def verdict(plan: dict[str, Any]) -> str:
    """Whether it fits, and by how much, in one line."""
    found, room = plan["fits"], plan["chip"]["memory"]
    if found["fits"] is None:
        return f"At most {_gib(found['total'])} GiB of a device, in `{found['program']}`."
    of = f"{_gib(found['total'])} of {_gib(room)} GiB"
    if found["fits"]:
        return (
            f"**It fits**: at most {of} of a device, in `{found['program']}`; "
            f"{_gib(found['left'])} GiB are left."
        )
    short = [one for one in plan["programs"] if one["left"] < 0]
    named = ", ".join(f"`{one['name']}` {_gib(-one['left'])} GiB" for one in short)
    return f"**It does not fit**: `{found['program']}` needs {of} of a device. Too much: {named}."


def _memory(one: dict[str, Any]) -> Row:
    memory = one["memory"]
    said = ("-", "-", "-", "refused")
    if memory is not None:
        kept = one["activations"]["device"]
        donated = "-"
        if one["to_donate"]:
            donated = f"{_gib(memory['donated'])} of {_gib(one['to_donate'])}"
        temporaries = (_gib(memory["temporaries"]), _gib(kept) if kept else "-")
        said = (_gib(memory["arguments"]), *temporaries, donated)
    left = "-" if one["left"] is None else _gib(one["left"])
    rest = (_gib(one["peak"]), _gib(one["beside"]), _gib(one["total"]), left)
    return (one["name"], one["when"], *said, _gib(one["cache"]) if one["cache"] else "-", *rest)


def _on_host(one: dict[str, Any]) -> str:
    kept = one["activations"]["host"]
    said = f", {_gib(kept)} of them activations" if kept else ""
    return f"`{one['name']}` {_gib(one['memory']['host'])} GiB{said}"


def _named(buffer: dict[str, Any]) -> str:
    times = f" ({buffer['times']} times)" if buffer["times"] > 1 else ""
    kind = "argument " if buffer["argument"] else ""
    return f"{kind}`{buffer['name']}`{times}"


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.3g}"
