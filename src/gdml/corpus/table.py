"""The table of a corpus."""

from collections.abc import Iterable

import pandas as pd

from gdml._files import write_text

from .folder import Folder
from .states import DONE, State, read_state

_COLUMNS = ["name", "path", "state"]
_AFTER = ["seconds", "reason", "result"]


def tabulate(folder: Folder, states: Iterable[State], columns: Iterable[str] = ()) -> pd.DataFrame:
    """Tabulate states.

    Parameters
    ----------
    folder
        Where the results are.
    states
        The states.
    columns
        Values of the records to show, such as ``["n_tiles"]``.

    Returns
    -------
    A row for each, with the columns ``name``, ``path``, ``state``, those of ``columns``, ``seconds``, ``reason`` and
    ``result`` (a path; empty unless it is done).
    """
    columns = list(columns)
    rows = [
        {
            "name": state.name,
            "path": state.path,
            "state": state.state,
            **{column: state.record.get(column) for column in columns},
            "seconds": state.seconds,
            "reason": state.reason,
            "result": str(folder.result(state.name)) if state.state == DONE else "",
        }
        for state in states
    ]
    return pd.DataFrame(rows, columns=[*_COLUMNS, *columns, *_AFTER])


def write_table(folder: Folder, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Write the table of all slides that the folder knows, by name.

    Parameters
    ----------
    folder
        The folder; the table takes its place whole.
    columns
        As in :func:`tabulate`.

    Returns
    -------
    The table.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    files = sorted((folder.path / "state").glob("[!.]*.json"))
    found = tabulate(folder, filter(None, map(read_state, files)), columns)
    write_text(folder.table, found.to_csv(index=False))
    return found
