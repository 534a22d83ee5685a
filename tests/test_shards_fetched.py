"""Tar shards that are fetched: from a server, by commands, into a cache of limited size."""

import http.server
import multiprocessing
import os
import threading
import time
from functools import partial

import pytest

from backbones import InputError
from training.data import WebDataset, shard_cache
from training.data.shard_cache import ShardCache

from .shard_files import loader, shade, stream, write_split, write_splits


@pytest.fixture
def folder(tmp_path):
    return write_splits(tmp_path / "shards")


class Server(http.server.SimpleHTTPRequestHandler):
    """Answers from a folder, and breaks off the first `broken` answers after some bytes."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.broken > 0:
            self.server.broken -= 1
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            self.wfile.write(b"x" * 100)
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder))) as server:
        server.asked, server.broken = [], 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def remote(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "PAUSE", 0)
    root = f"http://127.0.0.1:{server.server_port}"
    patterns = dict(train="train-{000000..000003}.tar", val="val-000000.tar")
    return partial(WebDataset, root=root, cache=str(tmp_path / "cache"), img_size=32, **patterns)


def test_shards_behind_a_url_are_fetched_once(remote, folder, server):
    source, _ = remote().splits()
    assert [shade(source, i) for i in range(20)] == [10 * i for i in range(20)]
    assert source.name(6) == f"http://127.0.0.1:{server.server_port}/train-000001.tar/0006.png"
    assert stream(loader(remote(), workers=2)) == stream(loader(WebDataset(root=str(folder), img_size=32)))
    assert len(server.asked) == 5


def test_a_fetch_that_breaks_off_is_tried_again(remote, server, tmp_path, caplog):
    server.broken = 2
    assert len(remote().splits()[0]) == 20 and len(server.asked) == 7 and caplog.text.count("trying again") == 2
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_url_without_a_shard(remote, folder):
    (folder / "train-000002.tar").unlink()
    (folder / "val-000000.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"allows 0.*/train-000002.tar \(fetching it failed: status 22 of: curl"):
        remote().splits()
    with pytest.raises(InputError, match=r"val-000000.tar \(truncated header"):
        remote(max_bad_shards=1).splits()
    write_split(folder, "val", 1)  # what was fetched in vain is fetched again
    train_source, val_source = remote(max_bad_shards=1).splits()
    assert len(train_source) == 15 and len(val_source) == 5


def test_commands_and_s3(folder, remote, tmp_path, monkeypatch):
    aws = tmp_path / "bin/aws"
    aws.parent.mkdir()
    check = '[ "$1 $2 $3 $5" = "s3 cp --only-show-errors -" ]'
    aws.write_text(f'#!/bin/sh\n{check} && cat "{folder}/${{4##*/}}"\n')
    aws.chmod(0o755)
    monkeypatch.setenv("PATH", f"{aws.parent}:{os.environ['PATH']}")
    source, _ = remote(root="s3://bucket/some where").splits()
    assert shade(source, 19) == 190 and source.name(19) == "s3://bucket/some where/train-000003.tar/0019.png"
    monkeypatch.setattr(shard_cache, "ATTEMPTS", 1)
    for pattern, reason in (("pipe:cat /nowhere 2>&1", "status 1 of: cat"), ("odd://bucket/x.tar", "no gopen handler")):
        with pytest.raises(InputError, match=rf"fetching it failed: .*{reason}"):
            remote(train=pattern).splits()
    monkeypatch.setattr(shard_cache, "SILENCE", 1)
    with pytest.raises(InputError, match="nothing has arrived for 1 seconds"):
        remote(train="pipe:sleep 30").splits()


def test_the_cache_is_bounded(remote, tmp_path):
    with pytest.raises(InputError, match=r"do not fit into .*cache: data.cache_gb allows 3e-05 GB"):
        remote(cache_gb=3e-5).splits()
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 30_000
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made.*Set data.cache"):
        remote(cache=str(tmp_path / "file/below")).splits()


def test_room_is_counted_by_one_at_a_time(remote, monkeypatch):
    """What another renames meanwhile would be counted by nobody, and the cache grow too large."""
    counting, together = [], []

    def check(cache):
        counting.append(cache)
        time.sleep(0.1)
        together.append(len(counting))
        counting.pop()

    monkeypatch.setattr(ShardCache, "_check_room", check)
    remote().splits()
    assert together == [1] * 5


def test_processes_fetch_a_shard_once(folder, tmp_path):
    """Four ranks open the same data at the same time."""
    shard, log = folder / "train-000000.tar", tmp_path / "log"
    data = WebDataset(
        train=f"pipe:echo fetched >> {log}; sleep 0.3; cat {shard}", val=str(shard), cache=str(tmp_path / "cache")
    )
    context = multiprocessing.get_context("forkserver")  # this process has threads, with which a fork may hang
    context.set_forkserver_preload(["training.data"])
    processes = [context.Process(target=data.splits) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4 and log.read_text() == "fetched\n"


def test_a_file_that_another_process_removes_takes_no_room(tmp_path, monkeypatch):
    (tmp_path / "shard").write_bytes(bytes(1000))
    entries = list(os.scandir(tmp_path))
    (tmp_path / "gone").touch()
    gone = [entry for entry in os.scandir(tmp_path) if entry.name == "gone"]
    (tmp_path / "gone").unlink()
    monkeypatch.setattr(os, "scandir", lambda _: [*gone, *entries])
    ShardCache(tmp_path, 1000)._check_room()
    with pytest.raises(InputError, match="do not fit"):
        ShardCache(tmp_path, 999)._check_room()
