"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Name of a temporary file that takes the place of ``path`` when the block ends without an error.

    The temporary file lies in the same folder, so that the last step is one rename: whoever reads ``path`` finds the
    old file or the new one, and an interrupted run leaves the old one whole.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("row,anomaly_score")
    >>> target.read_text()
    'row,anomaly_score'
    """
    target = Path(path)
    # A name may be no longer than 255 bytes.
    name = os.fsencode(target.name)[:64].decode(errors="ignore")
    temporary = target.with_name(f".{name}.{secrets.token_hex(8)}.part")
    # Unlike those of tempfile, with the permissions that any new file has.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
