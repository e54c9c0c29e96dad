"""An output that grows beside its final name, with a note of how far it is complete."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.atomic import replacing
from vae_anomaly.errors import DataError

__all__ = ["Partial"]

# Seconds between two notes, each of which waits for the disk.
NOTE_EVERY = 2.0


class Partial:
    """Content that is appended to ``OUTPUT.partial``; ``OUTPUT.partial.state`` says what made it and how far it goes.

    Parameters
    ----------
    output : str or path
        Where the finished file is to be.
    task : dict
        Plain data that the content hangs on.

    Examples
    --------
    >>> import tempfile
    >>> output = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> first = Partial(output, {"data": "pump.csv"})
    >>> first.append(b"row,score\\n", {"rows": 0}, {})
    >>> first.close()
    >>> again = Partial(output, {"data": "pump.csv"})
    >>> again.resume()[0]
    {'rows': 0}
    >>> again.append(b"1,0.5\\n", {"rows": 1}, {})
    >>> again.finish()
    >>> output.read_text()
    'row,score\\n1,0.5\\n'
    """

    def __init__(self, output: str | os.PathLike[str], task: dict[str, Any]) -> None:
        self.output, self.task = Path(output), json.loads(json.dumps(task))
        self.path = self.output.with_name(f"{self.output.name}.partial")
        self.state_path = self.output.with_name(f"{self.output.name}.partial.state")
        self._file: io.BufferedRandom | None = None
        self._noted = -float("inf")
        # How long the content was when the notes were made, and these: in one, so that no interruption can part them.
        self._pending: tuple[int, dict[str, Any], dict[str, NDArray[Any]]] | None = None

    @property
    def exists(self) -> bool:
        """Whether an earlier run left content and a note."""
        return self.path.is_file() and self.state_path.is_file()

    @property
    def is_foreign(self) -> bool:
        """Whether something else has the name of the content."""
        return self.path.exists() and not self.exists

    @property
    def fits(self) -> bool:
        """Whether :meth:`resume` can go on with what an earlier run left."""
        try:
            return self.exists and bool(self._state())
        except DataError:
            return False

    def resume(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Go on after the content that was last noted; what was noted with it.

        Raises
        ------
        DataError
            If another task made it, or it is damaged.
        """
        length, notes, arrays = self._state()
        self._file = self.path.open("r+b")
        self._file.truncate(length)
        self._file.seek(length)
        return notes, arrays

    def _state(self) -> tuple[int, dict[str, Any], dict[str, NDArray[Any]]]:
        """What was last noted of the same task."""
        try:
            with np.load(self.state_path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            state = json.loads(str(arrays.pop("state")))
            length, task, notes = state["length"], state["task"], state["notes"]
        except Exception:  # a damaged file can raise almost anything
            raise DataError(f"{self.state_path} is damaged. {_WAY_OUT}") from None
        changed = [name for name in {**task, **self.task} if task.get(name) != self.task.get(name)]
        if changed:
            raise DataError(f"{self.path} was made by another run: the {changed[0]} differs. {_WAY_OUT}")
        if self.path.stat().st_size < length:
            raise DataError(f"{self.path} is shorter than it was. {_WAY_OUT}")
        return length, notes, arrays

    def append(self, content: bytes, notes: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Add content, and note that it is complete up to here."""
        if self._file is None:
            self.state_path.unlink(missing_ok=True)
            self._file = self.path.open("w+b")
        self._file.write(content)
        self._pending = self._file.tell(), notes, arrays
        if time.monotonic() >= self._noted + NOTE_EVERY:
            self._note()

    def _note(self) -> None:
        assert self._file is not None
        if self._pending is None:
            return
        self._file.flush()
        # Were the note on the disk before the content, a power cut would leave a hole.
        os.fsync(self._file.fileno())
        length, notes, arrays = self._pending
        state = json.dumps({"length": length, "task": self.task, "notes": notes})
        with replacing(self.state_path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, state=np.array(state), **arrays)
        self._pending, self._noted = None, time.monotonic()

    def content(self) -> io.BufferedRandom:
        """The content, to be read from its beginning."""
        assert self._file is not None
        self._file.flush()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Leave the content for :meth:`resume`, or nothing where none was noted: it could not be gone on with."""
        if self._file is None:
            return
        try:
            self._note()
        finally:
            file, self._file = self._file, None
            try:
                # On a full disk, this fails as the note does.
                file.close()
            finally:
                if not self.state_path.is_file():
                    self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for path in (self.path, self.state_path):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the content its final name."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.path.replace(self.output)
        self.state_path.unlink(missing_ok=True)


_WAY_OUT = "Score without --resume, which replaces it."
