"""Scripts that run in the server, one per ``.lua`` file beside this module."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script and the digest by which the server knows it."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """Read ``NAME.lua``; its header tells KEYS, ARGV, result and complexity."""
        text = files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
