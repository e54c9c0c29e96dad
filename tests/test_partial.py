"""Outputs that appear whole, and what is known of them while they grow."""

import os
import stat
from pathlib import Path

import pytest

from vae_anomaly.atomic import replacing
from vae_anomaly.partial import Partial


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Interrupted(Partial):
    """Stopped as soon as a content was written, before it is known what is complete."""

    stop = False

    def __setattr__(self, name, value):
        if self.stop and name == "_pending" and value is not None:
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_an_interruption_between_content_and_note_leaves_the_batch_to_be_written_again():
    first = Interrupted("scores.csv", {})
    # The second one is not noted at once, as the disk is waited for every other second at most.
    first.append(b"1\n", {"rows": 1}, {})
    first.append(b"2\n", {"rows": 2}, {})
    first.stop = True
    with pytest.raises(KeyboardInterrupt):
        first.append(b"3\n", {"rows": 3}, {})
    first.close()
    again = Partial("scores.csv", {})
    assert again.resume()[0] == {"rows": 2}
    again.append(b"3\n", {"rows": 3}, {})
    again.finish()
    assert Path("scores.csv").read_bytes() == b"1\n2\n3\n"


def test_content_of_which_nothing_was_noted_does_not_stay(monkeypatch):
    full = OSError(28, "No space left on device")

    def failing(self):
        raise full

    first = Partial("scores.csv", {})
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "_note", failing)
        for step in (lambda: first.append(b"1\n", {"rows": 1}, {}), first.close):
            with pytest.raises(OSError, match="No space left"):
                step()
    assert os.listdir() == []
    # What was noted once is gone on with.
    first.append(b"1\n", {"rows": 1}, {})
    monkeypatch.setattr(Partial, "_note", failing)
    with pytest.raises(OSError, match="No space left"):
        first.close()
    assert sorted(os.listdir()) == ["scores.csv.partial", "scores.csv.partial.state"]
    assert Partial("scores.csv", {}).fits
    assert not Partial("scores.csv", {"data": "other"}).fits


@pytest.mark.parametrize("name", ["\U0001d516" * 62, "x" * 250, "scores.csv"])
def test_a_name_as_long_as_a_file_system_allows(name):
    with replacing(name) as temporary:
        temporary.write_text("whole")
        assert len(os.fsencode(temporary.name)) < 255
    assert os.listdir() == [name]
    Path("other").touch()
    assert stat.S_IMODE(Path(name).stat().st_mode) == stat.S_IMODE(Path("other").stat().st_mode)
