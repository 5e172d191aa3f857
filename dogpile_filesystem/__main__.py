"""
``python -m dogpile_filesystem``: the command line, or how to install what it needs.
"""

from __future__ import annotations

import sys

_PACKAGES = {"click", "rich"}


def main() -> None:
    """
    Run the command line.

    :raises SystemExit: always; with one line that says how to install it if the extra is missing.
    """
    try:
        from dogpile_filesystem import cli  # noqa: PLC0415

        cli.main(prog_name="dogpile-filesystem")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        sys.exit("The command line needs more packages: pip install 'dogpile_filesystem[cli]'")


if __name__ == "__main__":
    main()
