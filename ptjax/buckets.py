"""Few sizes instead of many: what is compiled once for each size that occurs."""


def bucket(size: int, *, least: int = 1) -> int:
    """The next of `least` · 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, none half empty."""
    power = least
    while power < size:
        if power >= 2 * least and power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power
