"""Remembered margins: by model and exact text, shared by scans, and never in the way of one."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from moekd.scan.cache import FILE, Cache, default_folder, key_of
from moekd.scan.model import Answer

MODEL, OTHER = "ab" * 16, "cd" * 16
KEYS = [key_of(f"int f{i};") for i in range(1200)]


@pytest.fixture
def opened():
    """Open caches that are closed at the end of the test."""
    caches: list[Cache] = []

    def open_cache(*arguments) -> Cache:
        caches.append(Cache(*arguments))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


def test_what_was_put_is_found_by_another_scan(opened, tmp_path):
    """More keys than one query takes; answers come back as they were, to the last bit, with their kind or without."""
    margins = {
        key: Answer(i / 7, i % 2 == 0, *((i % 3, i / 1300) if i % 5 else (None, None))) for i, key in enumerate(KEYS)
    }
    cache = opened(tmp_path / "new" / "folder", MODEL)
    cache.put(margins)
    cache.close()
    assert opened(tmp_path / "new" / "folder", MODEL).get(KEYS) == margins


def test_models_do_not_share_margins(opened, tmp_path):
    opened(tmp_path, MODEL).put({KEYS[0]: Answer(1.0, False)})
    assert opened(tmp_path, OTHER).get(KEYS) == {}


def test_texts_that_differ_in_a_line_break_have_different_keys():
    """The model sees line breaks, so a margin must not be taken from one for the other."""
    assert key_of("int f;") != key_of("int\nf;")
    assert len(key_of("\udcff")) == 16


def test_no_cache(opened):
    cache = opened(None, MODEL)
    cache.put({KEYS[0]: Answer(1.0, False)})
    assert cache.get(KEYS) == {}
    assert cache.trouble is None


def test_two_scans_write_at_the_same_time(opened, tmp_path):
    """Each thread is a scan with a connection of its own; all rows arrive and none has trouble."""
    troubles: list[str | None] = []

    def work(part: list[bytes]) -> None:
        cache = Cache(tmp_path, MODEL)
        for key in part:
            cache.put({key: Answer(1.0, False)})
        troubles.append(cache.trouble)
        cache.close()

    threads = [threading.Thread(target=work, args=(KEYS[start : start + 60],)) for start in (0, 30, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == [None] * 3
    assert len(opened(tmp_path, MODEL).get(KEYS)) == 150


def test_a_damaged_file_turns_the_cache_off(opened, tmp_path):
    (tmp_path / FILE).write_bytes(b"no data base" * 1000)
    cache = opened(tmp_path, MODEL)
    assert "is not used: file is not a database" in cache.trouble
    cache.put({KEYS[0]: Answer(1.0, False)})
    assert cache.get(KEYS) == {}


def test_wrong_content_turns_the_cache_off(opened, tmp_path):
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("CREATE TABLE scores (model BLOB, text BLOB, margin TEXT, cut INTEGER)")
        base.execute("INSERT INTO scores VALUES (?, ?, 'high', 0)", (bytes.fromhex(MODEL), KEYS[0]))
    base.close()
    cache = opened(tmp_path, MODEL)
    assert cache.get(KEYS[:1]) == {}
    assert "is not used" in cache.trouble


def test_a_full_disk_turns_the_cache_off(opened, tmp_path):
    """SQLite says the same when its page limit is reached as when the disk is full."""
    cache = opened(tmp_path, MODEL)
    cache._base.execute("PRAGMA max_page_count = 3")
    cache.put(dict.fromkeys(KEYS, Answer(1.0, False)))
    assert cache.trouble == f"the cache in {tmp_path} is not used: database or disk is full"
    assert cache.get(KEYS) == {}


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to(path / "none")])
def test_a_folder_that_cannot_be_made(opened, tmp_path, make):
    make(tmp_path / "cache")
    assert "is not used" in opened(tmp_path / "cache", MODEL).trouble


def test_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "moekd"


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    """As in a container that runs under a number nobody knows."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("moekd.scan.cache.Path.home", no_home)
    assert default_folder() is None
