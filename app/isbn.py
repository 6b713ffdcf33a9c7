"""International Standard Book Numbers: every way of writing one, brought to its 13 digits. Pure."""

import re

_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]")


def isbn13(text: str) -> str:
    """The 13 digits of an ISBN-13 or ISBN-10, written with or without hyphens.

    Raises:
        ValueError: the length, the prefix (978, 979) or the check digit is wrong.
    """
    digits = _SEPARATORS.sub("", text).upper().removeprefix("ISBN").removeprefix(":")
    if re.fullmatch(r"[0-9]{9}[0-9X]", digits):
        if _check_digit_10(digits[:9]) != digits[9]:
            raise ValueError(f"{text!r} is not an ISBN: its check digit should be {_check_digit_10(digits[:9])}")
        digits = "978" + digits[:9]
        return digits + _check_digit_13(digits)
    if not re.fullmatch(r"97[89][0-9]{10}", digits):
        raise ValueError(f"{text!r} is not an ISBN: it needs 10 digits, or 13 that begin with 978 or 979")
    if _check_digit_13(digits[:12]) != digits[12]:
        raise ValueError(f"{text!r} is not an ISBN: its check digit should be {_check_digit_13(digits[:12])}")
    return digits


def _check_digit_10(digits: str) -> str:
    remainder = -sum(weight * int(digit) for weight, digit in zip(range(10, 1, -1), digits, strict=True)) % 11
    return "X" if remainder == 10 else str(remainder)


def _check_digit_13(digits: str) -> str:
    return str(-sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits)) % 10)
