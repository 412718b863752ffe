"""The command line: `vla-crl COMMAND`, a thin layer over `vla_crl.cli.commands`.

`main` prints what a command returns as a table or, with `--json`, as exactly one JSON document on
stdout. Logs and progress go to stderr.
"""

import contextlib
import difflib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from vla_crl.cli.commands import Options
from vla_crl.cli.doctor import use_headless_gl
from vla_crl.cli.parser import build_parser
from vla_crl.cli.printing import print_rows
from vla_crl.cli.standard_streams import open_closed_streams, stdout_to_stderr, writing_stdout
from vla_crl.errors import ConfigError
from vla_crl.own_code import in_a_line
from vla_crl.recipes import RECIPE_CLASSES, load_recipe
from vla_crl.termination import EXIT_CODE, Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (doctor or verify found a fault), 2 (a user's mistake), 130
        (interrupted), 141 (nobody reads our output any more) or 143 (SIGTERM).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    open_closed_streams()
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("vla_crl").setLevel(logging.INFO)
    use_headless_gl()
    try:
        options, unknown = build_parser().parse_known_args(arguments)
        options.overrides, options.command_line = unknown, ["vla-crl", *arguments]
        if unknown and options.command not in RECIPE_CLASSES:
            raise _unknown_argument(options, unknown[0])
        if options.help:
            load_recipe(options.command, options.recipe, [*unknown, "--help"])
        with stdout_to_stderr() if options.json else contextlib.nullcontext():
            result = options.function(options)
        with writing_stdout():
            if options.json:
                print(json.dumps(result, indent=2, allow_nan=False))
            elif result:
                print_rows(result)
    except KeyboardInterrupt as error:
        print("; ".join(["vla-crl: interrupted", *map(str, error.args)]), file=sys.stderr)
        return 130
    except Terminated as error:
        print(f"vla-crl: ended by SIGTERM; {error}", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:
        return 141
    except Exception as error:
        if (line := in_a_line(error)) is None:
            raise
        print(f"vla-crl: error: {line}", file=sys.stderr)
        return 2
    return int(_found_a_fault(options.command, result))


def _found_a_fault(command: str, result: Any) -> bool:
    """Tell whether a command that looks for faults has found one."""
    if command == "doctor":
        return any(row["status"] == "fail" for row in result)
    return command == "verify" and not all(row["agrees"] for row in result)


def _unknown_argument(options: Options, argument: str) -> ConfigError:
    flags = [flag for action in options.parser._actions for flag in action.option_strings]
    close = difflib.get_close_matches(argument.partition("=")[0], flags, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"See vla-crl {options.command} --help."
    return ConfigError(f"vla-crl {options.command}: unknown argument '{argument}'. {hint}")
