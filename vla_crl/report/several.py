"""The reports of several runs, and what they say together."""

from collections.abc import Sequence
from pathlib import Path

from vla_crl.errors import ConfigError
from vla_crl.files.writing import write_atomically
from vla_crl.progress import console
from vla_crl.report.page import write_report
from vla_crl.report.pairing import Comparison, compare_runs
from vla_crl.report.run_record import RunRecord
from vla_crl.report.tables import (
    comparison_markdown,
    runs_markdown,
    summarize_runs,
    write_markdown_summary,
)


def write_reports(paths: Sequence[Path], markdown: Path | None = None) -> list[Path]:
    """Write the page of every run; two that are not seeds of one experiment are compared in it.

    Args:
        paths: Run directories.
        markdown: File for the numbers: of one run, of the comparison, or of the mean over seeds.

    Returns:
        The pages.

    Raises:
        ConfigError: Not a run directory, a damaged file, or runs that are asked for in one Markdown
            file and can be neither averaged nor compared.
    """
    comparison = _compare([RunRecord.read(path) for path in paths], is_needed=markdown is not None)
    pages = [write_report(path, comparison) for path in paths]
    if markdown and comparison:
        write_atomically(markdown, comparison_markdown(comparison))
    elif markdown and len(paths) == 1:
        write_markdown_summary(paths[0], markdown)
    elif markdown:
        summary = summarize_runs(paths)
        for line in summary.unlike:
            console.print(f"the runs were not made alike: {line}", soft_wrap=True)
        write_atomically(markdown, runs_markdown(summary))
    return pages


def _compare(runs: Sequence[RunRecord], *, is_needed: bool) -> Comparison | None:
    """Compare two runs that are not two seeds, and tell what came out, or why they cannot be."""
    if len(runs) != 2:
        return None
    first, second = runs
    is_other_seed = first.config.get("seed") != second.config.get("seed")
    if is_other_seed and not first.differing_settings(second):
        return None
    try:
        comparison = compare_runs(first, second)
    except ConfigError as error:
        if is_needed:
            raise
        console.print(f"not compared: {error}", soft_wrap=True)
        return None
    console.print(comparison.sentence, soft_wrap=True)
    return comparison
