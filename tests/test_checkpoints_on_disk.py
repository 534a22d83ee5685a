"""Checkpoints that are damaged, or whose writing was cut short."""

import hashlib
import os
from contextlib import suppress

import pytest
import torch

from backbones import InputError
from training.engine import Checkpoints


@pytest.fixture
def saved(tmp_path):
    """Three states were saved; the last two are there."""
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save({"number": number, "values": torch.arange(1000.0)})
    return checkpoints


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:100] if how == "truncated" else b"" if how == "empty" else content)


def test_the_last_state_and_the_one_before_it_are_kept(saved):
    assert saved.load()["number"] == 3
    assert torch.load(saved.previous, weights_only=True)["number"] == 2
    assert sorted(path.name for path in saved.folder.iterdir()) == ["SHA256SUMS", "last.pt", "previous.pt"]
    sums = (saved.folder / "SHA256SUMS").read_text().splitlines()
    assert f"{hashlib.sha256(saved.last.read_bytes()).hexdigest()}  last.pt" in sums


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "gone"])
def test_a_damaged_state_is_noticed_and_the_previous_one_used(saved, caplog, how):
    if how == "gone":
        os.remove(saved.last)
    else:
        damage(saved.last, how)
    assert Checkpoints(saved.folder).load()["number"] == 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines == (
        [] if how == "gone" else [f"{saved.last} is damaged: its checksum is not the one that was written."]
    )


def test_without_a_whole_state_there_is_no_silent_beginning(saved):
    damage(saved.last, "flipped")
    damage(saved.previous, "truncated")
    assert saved.exist()
    with pytest.raises(InputError, match=r"neither .*last.pt nor .*previous.pt is whole"):
        saved.load()


@pytest.mark.parametrize("killed_before", [1, 2, 3, 4, 5])
def test_a_save_that_is_cut_short_loses_nothing(saved, monkeypatch, killed_before):
    """Each rename of a save is one moment at which the process may die; time and again, in the worst case."""
    replace = os.replace
    for _ in range(3):
        renames = iter(range(1, 10))

        def dying(old, new, renames=renames):
            if next(renames) == killed_before:
                raise SystemError("killed")
            replace(old, new)

        monkeypatch.setattr(os, "replace", dying)
        with suppress(SystemError):
            saved.save({"number": 4})
        monkeypatch.setattr(os, "replace", replace)
        assert Checkpoints(saved.folder).load()["number"] in (3, 4)
    saved.save({"number": 5})
    assert saved.load()["number"] == 5


def test_a_state_that_holds_code_is_refused(saved):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    torch.save({"number": Evil()}, saved.last)
    digest = hashlib.sha256(saved.last.read_bytes()).hexdigest()
    (saved.folder / "SHA256SUMS").write_text(f"{digest}  last.pt\n")
    with pytest.raises(InputError, match="neither"):
        saved.load()
    assert not os.path.exists("evil")
