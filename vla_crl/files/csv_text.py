"""CSV as people's programs write it: the dialects of spreadsheets, and what is no CSV."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from vla_crl.errors import ConfigError

DELIMITERS = ",;\t"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""What a spreadsheet may write first: which delimiter it used."""


class CsvText:
    """The lines of a CSV file without those that are blank.

    Attributes:
        delimiter: A comma, a semicolon or a tab, whichever is the most frequent in the first line
            that is not blank, unless that names another.
    """

    def __init__(self, text: str, path: Path) -> None:
        """Look at the first line.

        Args:
            text: Of the file.
            path: For messages.
        """
        self._text, self._path = text, path
        head = next((line for line in text.splitlines() if line.strip()), "")
        named = _SEPARATOR_LINE.fullmatch(head)
        self._names_delimiter = named is not None
        self.delimiter = named[1] if named else max(DELIMITERS, key=head.count)

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield number and values of every line that has a value, the column titles first.

        Raises:
            ConfigError: It is not CSV; names the line.
        """
        reader = csv.reader(
            io.StringIO(self._text, newline=""), delimiter=self.delimiter, skipinitialspace=True
        )
        skip = self._names_delimiter
        try:
            for values in reader:
                if any(value.strip() for value in values):
                    if not skip:
                        yield reader.line_num, values
                    skip = False
        except csv.Error as error:
            raise ConfigError(f"{self._path}:{reader.line_num}: not CSV ({error})") from error

    @property
    def columns(self) -> list[str]:
        """The column titles; none in an empty file."""
        return [name.strip() for name in next(self.lines(), (0, []))[1]]
