"""Lua scripts that run in the server, one per ``.lua`` file."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script, and the SHA-1 digest by which the server knows it."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, *names: str, package: str = __package__) -> "Script":
        """Read ``NAME.lua`` of a package, whose header documents KEYS, ARGV, the result and the complexity. Of several
        names, the last is the script itself; those before it define the functions that it uses."""
        text = "".join(files(package).joinpath(f"{name}.lua").read_text("utf-8") for name in names)
        return cls(names[-1], text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
