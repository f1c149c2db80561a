"""The progress bars of the evaluation."""

import rich.console
import rich.progress


def progress(quiet: bool) -> rich.progress.Progress:
    """Bars with time left on stderr; none where quiet."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), disable=quiet)
