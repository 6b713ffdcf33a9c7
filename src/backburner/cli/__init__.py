"""The command line, ``backburner …``. Here is only its door, so that what is missing can be said in one sentence."""

__all__ = ["main"]


def main() -> None:
    """Run the command given on the command line."""
    try:
        from backburner.cli.commands import app
    except ModuleNotFoundError as missing:
        if missing.name != "typer":
            raise
        raise SystemExit('the command line needs one more package: pip install "backburner[cli]"') from None
    app()
