"""What clients are not told, unless ``--expose-tracebacks``: where files of the server are. The frames of tracebacks stay in the stubs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Dict, Iterator, List

from .errors import ServerError
from .supervision.cause import without_tracebacks


def without_paths(text: str) -> str:
    """A text of the server's own, with the names of files instead of their paths."""
    return "\n".join(without_tracebacks(text.splitlines()))


@contextmanager
def paths_hidden(expose: bool) -> Iterator[None]:
    """For what the repository is asked for by clients: an error that is raised has no paths, unless ``expose``."""
    try:
        yield
    except ServerError as error:
        if expose:
            raise
        raise type(error)(without_paths(str(error))) from error


def rows_without_paths(rows: List[Dict[str, str]], expose: bool) -> List[Dict[str, str]]:
    """The rows of a repository's index, whose reasons have no paths, unless ``expose``."""
    return rows if expose else [{**row, "reason": without_paths(row["reason"])} if "reason" in row else row for row in rows]
