"""`python -m rectutor table.csv`: the first minute with a table of one's own."""

from __future__ import annotations

import argparse
import io
import sys


def main(arguments: list[str] | None = None) -> None:
    """Print the report on the table that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m rectutor",
        description="Say what a table of interactions holds, what simple baselines reach on it, "
        "and which chapter of the book is worth running.",
        epilog='RECTUTOR_COLUMNS="user=...,item=..." says which column is which.',
    )
    parser.add_argument("table", help="a CSV or Parquet file, one row an interaction")
    table = parser.parse_args(arguments).table

    from rectutor import first_minute

    for stream in (sys.stdout, sys.stderr):  # a terminal may know fewer letters than the table
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        first_minute.report(table)
    except ValueError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
