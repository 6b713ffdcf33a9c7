"""Certificates of an authority of our own, made for the tests by the `openssl` command."""

import shutil
import subprocess
from pathlib import Path

from tests.servers import missing

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificates:
    """PEM files: the authority ``ca``, what it signed for a server at 127.0.0.1 and a client, and a ``stranger``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for authority in ("ca", "stranger"):
            self._openssl(
                *("req", "-x509", *_NEW_KEY, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-days", "2"),
                *("-subj", f"/CN={authority}", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            )
        for name, use in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
            (folder / f"{name}.ext").write_text(use)
            self._openssl("req", *_NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            self._openssl(
                *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-out", f"{name}.crt", "-days", "2", "-extfile", f"{name}.ext"),
            )

    def certificate(self, name: str) -> str:
        """The path of a certificate."""
        return str(self._folder / f"{name}.crt")

    def key(self, name: str) -> str:
        """The path of the key that belongs to it."""
        return str(self._folder / f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        program = shutil.which("openssl") or missing("openssl")
        subprocess.run([program, *arguments], cwd=self._folder, check=True, capture_output=True)
