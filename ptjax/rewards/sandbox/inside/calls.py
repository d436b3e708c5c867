"""A program whose functions are called from outside, with plain data."""

import json

import wire

ASK, ANSWER = 3, 4


def serve(names: dict) -> None:
    """Answers questions until they end.

    Args:
      names: what the program defined.
    """
    objects: list = []

    def keep(value) -> int:
        objects.append(value)
        return len(objects) - 1

    with open(ASK, encoding="utf-8") as asked, open(ANSWER, "w", encoding="utf-8") as answers:
        for line in asked:
            try:
                made = answer(names, objects, json.loads(line))
                said = json.dumps({"value": wire.pack(made, keep)})
            except Exception as error:
                text = f"{type(error).__name__}: {error}"[:200]
                said = json.dumps({"raised": type(error).__name__, "text": text})
            answers.write(said + "\n")
            answers.flush()


def answer(names: dict, objects: list, question: dict):
    """What a function or an attribute says.

    A question's `of` is a path such as `add`, `Solution().add` or `math.pi`, or the number of an
    object that was kept; `attribute` is one of its attributes; `args` calls it.
    """
    of = question["of"]
    found = objects[of] if isinstance(of, int) else at(names, of)
    if "attribute" in question:
        found = getattr(found, question["attribute"])
    if "args" not in question:
        return found
    args = wire.unpack(question["args"], objects.__getitem__)
    return found(*args, **wire.unpack(question["kwargs"], objects.__getitem__))


def at(names: dict, path: str):
    """What a path leads to; a bare name that is not there is looked for as `Solution`'s method."""
    first, *rest = path.split(".")
    if first.removesuffix("()") not in names and not rest and "Solution" in names:
        first, rest = "Solution()", [path]
    bare = first.removesuffix("()")
    if bare not in names:
        raise NameError(f"name {bare!r} is not defined")
    found = names[bare]() if first.endswith("()") else names[bare]
    for part in rest:
        found = getattr(found, part.removesuffix("()"))
        found = found() if part.endswith("()") else found
    return found
