"""Header fields as values, and back. Pure; whatever arrives, nothing here raises.

Headers are pairs of bytes as ASGI has them, names in lower case. What cannot be read is told apart from what is not
there only where a rule needs it; else it counts as not there.
"""

import re
from typing import Final

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def is_token(text: str) -> bool:
    """Whether a text may be a header's name, or a directive's (RFC 9110 section 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None
