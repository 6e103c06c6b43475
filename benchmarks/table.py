"""Results as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.results import Machine, Results, Row, Value

__all__ = ["HEADING", "describe", "heading_of", "noise_of", "row_of", "table_of"]

HEADING = (
    f"{'what':<13} {'who':<9} {'runs':>4} {'CPU us/op':>11} {'± %':>5} {'x floor':>8} {'± %':>5} {'op/s':>9} {'± %':>5}"
    f" {'peak MB':>8}  verified"
)


def noise_of(value: Value) -> str:
    """Return half the range in percent of the median; `-` where there was one run."""
    return "-" if value.share is None else f"{value.share * 100:.0f}"


def row_of(results: Results, row: Row) -> str:
    """Return one line of the table."""
    start = f"{row.name:<13} {row.contender:<9} {len(row.runs):>4}"
    verified = "; ".join(row.faults) or "yes"
    if row.cpu is None or row.rate is None or row.memory is None:
        return f"{start}  {verified}"
    ratio = results.ratio(row)
    return (
        f"{start} {row.cpu.median * 1e6:>11,.2f} {noise_of(row.cpu):>5}"
        f" {'' if ratio is None else f'{ratio.median:.2f}':>8} {'' if ratio is None else noise_of(ratio):>5}"
        f" {row.rate.median:>9,.0f} {noise_of(row.rate):>5} {row.memory.median / 1e6:>8.1f}  {verified}"
    )


def describe(machine: Machine) -> str:
    """Return what the machine is, in one line."""
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.1f} GiB, {machine.kernel};"
        f" files: {machine.files}"
    )


def heading_of(results: Results) -> str:
    """Return what stands above the table: when, where and with what it was measured."""
    load = " ".join(f"{each:.2f}" for each in results.load_average)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"taken     {results.taken}, load average before {load}\n"
        f"machine   {describe(results.machine)}\n"
        f"versions  {versions}"
    )


def table_of(results: Results) -> str:
    """Return the whole table, an empty line between two loads or stages."""
    lines = [heading_of(results), "", HEADING]
    before = None
    for row in results.rows:
        if before not in {None, (row.part, row.name)}:
            lines.append("")
        before = row.part, row.name
        lines.append(row_of(results, row))
    return "\n".join(lines)
