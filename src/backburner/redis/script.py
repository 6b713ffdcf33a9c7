"""Scripts that run in the server, one per ``.lua`` file."""

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
    def load(cls, *names: str, package: str = __package__) -> "Script":
        """Read a package's ``NAME.lua``; its header tells KEYS, ARGV, result and complexity. Of several, one after the
        other, the last is the script; the others define what it uses."""
        text = "".join(files(package).joinpath(f"{name}.lua").read_text("utf-8") for name in names)
        return cls(names[-1], text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
