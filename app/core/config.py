"""The application's settings: Backburner's, and what a bookstore adds. Nothing else reads the environment."""

from pathlib import Path

from pydantic import Field

from backburner import Settings


class AppSettings(Settings):
    """Every field is an environment variable of the same name in capitals, or a line in ``.env``."""

    cache_l1: bool = Field(
        # Even milliseconds would be too long: the very next read, in any process, must see a write.
        default=False,
        description="Keep copies in each process, dropped when the server says that they changed",
    )
    session_ttl: float = Field(
        default=7 * 86_400, gt=0, description="Seconds without a request after which a session ends"
    )
    mail_from: str = Field(default="The Bookstore <books@localhost>", description="The sender of our e-mails")
    mail_timeout: float = Field(default=10, gt=0, description="Seconds that the mail server may take for each answer")
    upload_dir: Path = Field(
        default=Path(".backburner/uploads"), description="Where uploaded files wait for their import"
    )
    upload_limit: int = Field(default=50 * 1024 * 1024, gt=0, description="Bytes that an uploaded file may have")


settings = AppSettings()
