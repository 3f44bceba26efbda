"""Write docs/cli.md, the reference of the command line, from what `--help` prints.

python docs/make_cli.py             # writes it
python docs/make_cli.py --check     # exit code 1 where it is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from paramcompress.cli import COMMANDS, app

TARGET = Path(__file__).parent / "cli.md"
WIDTH = "100"
INTRODUCTION = """\
# Command line

What `--help` says, command by command. Written by `python docs/make_cli.py`: change the help texts, not this page.

Names of layers are matched by exact name, shell glob or `re:` and a regular expression for the whole name; an exact
name beats a pattern, and of several patterns the later wins. Sizes take B, kB (1000), KiB (1024), MB, MiB, GB and GiB.
Results go to stdout, everything else to stderr; with `--json`, stdout holds one JSON document ([json.md](json.md)) and
nothing else. Nothing is overwritten without `--force`, nothing asks questions, and an output file is there whole or
not at all.

| exit code | means |
|---|---|
| 0 | done |
| 1 | a budget cannot be met; in `check`, is broken, or a file is missing ([ci.md](ci.md)) |
| 2 | wrong usage, or a configuration that makes no sense |
| 3 | input unreadable, damaged or unsafe; output not writable, disk full |
| 4 | verification failed: the decoded file breaks a promise |
| 70 | a bug: the traceback is shown |
| 130 | interrupted |

An error is one line on stderr that begins with `error:`, with a remedy on a line that begins with `hint:` where there
is one. `PARAMCOMPRESS_DEBUG=1` shows where an error came from. `NO_COLOR` and `COLUMNS` are respected.
"""


def render() -> str:
    """The page as it should be."""
    names = [command.__name__ for command in COMMANDS]
    pages = [("paramcompress", ["--help"]), *((f"paramcompress {name}", [name, "--help"]) for name in names)]
    return "\n".join(
        [INTRODUCTION, *(f"## {title}\n\n```text\n{_help(arguments)}\n```\n" for title, arguments in pages)]
    )


def _help(arguments: list[str]) -> str:
    shown = CliRunner(env={"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH}).invoke(app, arguments, terminal_width=int(WIDTH))
    assert shown.exit_code == 0, shown.output
    return "\n".join(line.rstrip() for line in shown.stdout.splitlines()).strip()


def main() -> None:
    page = render()
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page:
            sys.exit(f"{TARGET.name} is not up to date: run python docs/make_cli.py")
    else:
        TARGET.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
