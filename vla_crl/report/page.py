"""The report of a run: one HTML file that holds all of it and asks the network for nothing."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vla_crl.continual.metrics import METRICS, compute_metrics, estimate, learning_accuracy
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.files.writing import write_atomically
from vla_crl.report.pairing import HOW, Comparison, PairedTable, stage_tables
from vla_crl.report.plots import write_plots
from vla_crl.report.run_record import RunRecord
from vla_crl.report.tables import Row, matrix_table, metric_rows, run_facts, too_large
from vla_crl.report.video import read_notes
from vla_crl.report.wording import (
    MISSING,
    headline,
    metric_interval,
    metric_value,
    percent,
    sentences,
)

FIGURES = {
    "success_matrix": (
        "Success on every task after every stage",
        "Each row is the same policy at one moment, tested without exploration noise on fixed test "
        "states. Numbers are percent, below them successes/episodes. Orange frames mark the task "
        "that the stage trained: read down from a frame to see what is kept, read the cells above "
        "it to see what arrived before training. Hatched: not evaluated.",
    ),
    "success_map": (
        "Success on every task after every stage",
        "Each row is the same policy at one moment, tested without exploration noise on fixed test "
        "states; each column is a task. Orange dots mark the task that the stage trained: below "
        "them is what is kept, above them what arrived before training. Grey: not evaluated.",
    ),
    "retention": (
        "What is learnt and what is kept",
        "One panel a task, the others in grey. The shaded stage trains the task; a falling line "
        "after it is forgetting, a rising one before it is transfer. Bands are Wilson's 95 % "
        "intervals.",
    ),
    "mean_retention": (
        "What is learnt and what is kept",
        "Mean success of the tasks trained so far, of those whose stage is still to come, and of "
        "held-out tasks; in grey every task by itself. A falling first line is forgetting, a "
        "rising second one transfer.",
    ),
    "learning_curves": (
        "Learning within each stage",
        "Success of the training episodes, which act with exploration noise, and the noise-free "
        "tests on unseen states before and after the stage (diamonds, 95 % intervals). Learning "
        "from demonstrations has no training episodes, and so the tests alone.",
    ),
    "learning_curve": (
        "Learning within the stages",
        "Success of the training episodes, which act with exploration noise; stages one after "
        "another.",
    ),
    "success_matrix_sampled": (
        "The same matrix, acting with exploration noise",
        "Success of the sampling policy, as it acts during training.",
    ),
    "success_map_sampled": (
        "The same, acting with exploration noise",
        "Success of the sampling policy, as it acts during training.",
    ),
    "diagnostics": (
        "Inside the update",
        "A KL divergence or clipped fraction that climbs says that the steps are too large; "
        "control steps/s shows whether the machine kept its speed.",
    ),
    "gradient_norms": (
        "What each term of the loss adds to the gradient",
        "Norm of each term's gradient by itself, its coefficient included, at the first minibatch "
        "of every iteration and before clipping. A term that lies far below the policy's is not "
        "felt: raise its coefficient. One that is missing has never had a gradient.",
    ),
}

FIRST_FIGURES = (
    *("success_matrix", "success_map", "retention", "mean_retention"),
    *("learning_curves", "learning_curve"),
)
"""Those above the numbers, as far as a run has them."""


def write_report(run_path: str | Path, comparison: Comparison | None = None) -> Path:
    """Write the plots and report.html of a run from nothing but its directory.

    A run that is still going on gives the page of what is there so far.

    Args:
        run_path: The run directory.
        comparison: With another run, to be shown too.

    Returns:
        The path of the page.

    Raises:
        ConfigError: Not a run directory, a damaged file in it, or a link.
    """
    record = RunRecord.read(run_path)
    record.run.refuse_links()
    plots = write_plots(record)
    write_atomically(record.run.report_file, _page(record, plots, comparison))
    return record.run.report_file


def _page(record: RunRecord, plots: dict[str, Path], comparison: Comparison | None) -> str:
    matrix = record.matrix
    figures = {name: _figure(name, path) for name, path in plots.items()}
    body = [
        _header(record),
        _cards(matrix) if matrix else "",
        *(figures.pop(name, "") for name in FIRST_FIGURES),
        _videos(record.videos),
        _compared(comparison) if comparison else "",
        _paired(record),
        _metrics(record),
        *figures.values(),
        _facts(record),
        "<footer>Every number and picture here is derived from the files of the run directory; "
        "<code>vla-crl report</code> builds the page from them again.</footer>",
    ]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    # The policy makes the browser itself refuse any request to a network.
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(record.name)} · vla-crl report</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{chr(10).join(filter(None, body))}\n</main>\n</body>\n</html>\n"
    )


def _header(record: RunRecord) -> str:
    matrix = record.matrix
    said, *more = sentences(matrix) if matrix else (headline(None),)
    facts = dict(run_facts(record))
    shown = [facts[key] for key in ("training time", "hardware") if key in facts]
    if "training episodes" in facts:
        shown.insert(0, f"{facts['training episodes']} training episodes")
    notice = ""
    if matrix is None or max(matrix.evaluated_stages) < matrix.num_stages:
        notice = (
            '<p class="notice">The run is not complete. Numbers that need its last stage are '
            f"missing ({MISSING}), not zero.</p>"
        )
    return (
        f'<header>\n<p class="overline">vla-crl · run <b>{escape(record.name)}</b></p>\n'
        f"<h1>{escape(said).replace(' %', '&nbsp;%')}</h1>\n"
        + "".join(f'<p class="lede">{escape(sentence)}</p>\n' for sentence in more)
        + f'<p class="overline">{escape(" · ".join(shown))}</p>\n{notice}</header>'
    )


def _cards(matrix: SuccessMatrix) -> str:
    cards = []
    for name, value in compute_metrics(matrix).items():
        if value is None:
            continue
        metric = METRICS[name]
        unit = " points" if metric.is_difference else ""
        meaning = metric.explanation + (_right_after_training(matrix) if name == "avg" else "")
        cards.append(
            f'<div class="card"><h3>{escape(metric.title)} <span class="name" '
            f'title="{escape(metric.formula)}">{escape(metric.symbol)}</span></h3>'
            f'<p class="value">{metric_value(name, value.value)}<small>{unit}</small></p>'
            f'<p class="interval">95 %: {metric_interval(name, value.low, value.high)}</p>'
            f'<p class="meaning">{escape(meaning)}</p></div>'
        )
    if not cards:
        return ""
    return f'<div class="cards">\n{chr(10).join(cards)}\n</div>'


def _right_after_training(matrix: SuccessMatrix) -> str:
    value = estimate(learning_accuracy, "train", matrix)
    return f" Right after their own stage: {percent(value.value)}." if value else ""


def _figure(name: str, path: Path) -> str:
    title, how = FIGURES[name]
    natural = ' class="natural"' if name.startswith("success_matrix") else ""
    return (
        f'<section id="{name}">\n<h2>{title}</h2>\n<p class="how">{how}</p>\n'
        f'<img{natural} alt="{title}" src="{_data_uri(path, "image/png")}">\n</section>'
    )


def _videos(paths: Sequence[Path]) -> str:
    figures = []
    for path in paths:
        notes = read_notes(path)
        lines = []
        for caption in notes.captions:
            text, _, ending = caption.rpartition(": ")
            lines.append(
                f'<li>{escape(text)}: <span class="{escape(ending)}">{escape(ending)}</span></li>'
            )
        figures.append(
            f"<figure><video controls autoplay loop muted playsinline "
            f'src="{_data_uri(path, "video/mp4")}"></video>'
            f"<figcaption><b>{escape(notes.title)}</b><ul>{''.join(lines)}</ul></figcaption></figure>"
        )
    if not figures:
        return ""
    return (
        '<section id="videos">\n<h2>Watch it</h2>\n<p class="how">Each tile is one episode on a '
        "test state with the instruction that the policy was given. A blue frame marks success, "
        'an orange one failure.</p>\n<div class="videos">\n'
        + "\n".join(figures)
        + "\n</div>\n</section>"
    )


def _metrics(record: RunRecord) -> str:
    matrix = record.matrix
    if matrix is None:
        return ""
    header: Row = ("metric", "name", "value", "95 % interval", "definition")
    rows = [
        (title, name, value, interval, METRICS[name].formula)
        for name, title, value, interval in metric_rows(matrix)
    ]
    if record.sampled_matrix is not None:
        sampled = [f"{value} ({span})" for *_, value, span in metric_rows(record.sampled_matrix)]
        header = (*header[:4], "with exploration noise", header[4])
        rows = [(*row[:4], extra, row[4]) for row, extra in zip(rows, sampled, strict=True)]
    cells = matrix_table(matrix)
    every_cell = (
        f'<details><summary>Every cell with its interval</summary><div class="scroll">'
        f"{_table(*cells, first_number=1)}</div></details>"
        if cells
        else f'<p class="how">{too_large(matrix, record.run.matrix_file)}</p>'
    )
    return (
        '<section id="metrics">\n<h2>Metrics by definition</h2>\n<p class="how">R[i,j] is the '
        "success on task j after stage i; stage 0 is before training, T the last stage, training "
        "task j is trained in stage j, h are the held-out tasks. Differences are in percentage "
        "points. The intervals come from the numbers of test episodes (Wilson's, combined after "
        "Zou et al. 2009) and describe this one run: how much another seed would differ, "
        f'only more runs can tell.</p>\n<div class="scroll">{_table(header, rows, first_number=2)}'
        f"</div>\n{every_cell}\n</section>"
    )


def _compared(comparison: Comparison) -> str:
    first, second = comparison.names
    unlike = "; ".join(comparison.unlike)
    return (
        f'<section id="comparison">\n<h2>{escape(first)} beside {escape(second)}</h2>\n'
        f"<p>{escape(comparison.sentence)}</p>\n"
        + (f'<p class="notice">Not made alike: {escape(unlike)}.</p>\n' if unlike else "")
        + f"{_paired_table(comparison.table)}<details><summary>Settings that differ</summary>"
        f"{_table(('setting', first, second), comparison.settings, first_number=3)}</details>\n"
        "</section>"
    )


def _paired(record: RunRecord) -> str:
    tables = stage_tables(record)
    if not tables:
        return ""
    body = "\n".join(f"<h3>{escape(table.title)}</h3>{_paired_table(table)}" for table in tables)
    return (
        '<section id="paired">\n<h2>State by state</h2>\n'
        f'<p class="how">{escape(HOW)}</p>\n{body}\n</section>'
    )


def _paired_table(table: PairedTable) -> str:
    return f'<div class="scroll tall">{_table(table.header, table.rows, first_number=1)}</div>\n'


def _facts(record: RunRecord) -> str:
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in run_facts(record)
    )
    packages = record.versions.get("packages", {})
    versions = _table(("package", "version"), list(packages.items()), first_number=2)
    config = escape(json.dumps(record.config, indent=2))
    return (
        f'<section id="facts">\n<h2>The run</h2>\n<dl class="facts">{facts}</dl>\n'
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>\n"
        f"<details><summary>{len(packages)} packages</summary>{versions}</details>\n</section>"
    )


def _table(header: Row, rows: Sequence[Row], *, first_number: int) -> str:
    """Return an HTML table; columns from `first_number` on are aligned to the right."""

    def line(cells: Row, tag: str) -> str:
        texts = []
        for column, cell in enumerate(cells):
            kind = "number" if first_number <= column else "text"
            kind = "definition" if header[column] == "definition" else kind
            texts.append(f'<{tag} class="{kind}">{escape(cell)}</{tag}>')
        return f"<tr>{''.join(texts)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead>\n<tbody>{body}</tbody></table>"


def _data_uri(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
