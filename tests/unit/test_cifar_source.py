"""CIFAR-10 and CIFAR-100 from their authors' files: downloads that break, and files that are not what they should be.

The server is a real one, on this machine; the sets are small ones of the same form, with md5 values of their own.
"""

import hashlib
import io
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import cifarscale as cs
from cifarscale.data import download as downloads
from cifarscale.data.build import build_shards
from cifarscale.data.cifar import CIFAR_10, CIFAR_100, Archive, cifar_source
from cifarscale.data.shards import write_shards
from cifarscale.errors import CifarscaleError, DataError
from cifarscale.report.page import write_report

NUM_TRAIN, NUM_TEST = 40, 20
CONTENT = np.random.Philox(key=0).random_raw(20_000).astype("<u8").tobytes()
CONTENT_MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file. `script` says how each request is answered, the last entry all further ones:

    range: well; whole: without regard to Range; break: half of what is due; damaged: other content of the same size;
    encoded: with a Content-Encoding, as servers that take .gz for an encoding do; 503: an error.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.script = ["range"]
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{CIFAR_100.file}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        mode = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if mode == "503":
            self.send_error(503)
            return
        content = self.server.content
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and mode != "whole" else 0
        if asked and start >= len(content):
            self.send_error(416)
            return
        body = bytes(len(content) - start) if mode == "damaged" else content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if mode == "encoded":
            self.send_header("Content-Encoding", "x-gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mode == "break" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def download(url: str, target: Path, md5: str) -> None:
    downloads.download(url, target, md5, "Copy it.")


def pixel(i: int) -> list[list[int]]:
    """Red, green and blue planes of the i-th image: each pixel tells its place in its plane, i, and the plane."""
    return [[(place + i + 100 * plane) % 256 for place in range(1024)] for plane in range(3)]


def split_content(archive: Archive, name: str, numbers: range) -> bytes:
    content = {
        b"filenames": [f"{name}_s_{i:06d}.png".encode() for i in numbers],
        archive.labels: [i % 2 for i in numbers],
        b"data": np.array([np.concatenate(pixel(i)) for i in numbers], np.uint8),
    }
    if archive.coarse_names:
        content[b"coarse_labels"] = [1 - i % 2 for i in numbers]
    return pickle.dumps(content, protocol=2)


@dataclass(frozen=True)
class Small:
    """A small set, which is taken for the official one.

    Attributes:
        files: what is in each of its files.
    """

    archive: Archive
    files: dict[str, bytes]

    def without(self, name: str) -> "Small":
        return replace(self, files={file: content for file, content in self.files.items() if file != name})


@pytest.fixture(params=[CIFAR_10, CIFAR_100], ids=lambda archive: archive.dataset)
def small(request: pytest.FixtureRequest) -> Small:
    archive: Archive = request.param
    names = {archive.fine_names: [b"apple", b"baby"], archive.coarse_names: [b"fish", b"people"]}
    files = {archive.meta: pickle.dumps(names, protocol=2)}
    for split, of_split, n in (("train", archive.train, NUM_TRAIN), ("test", archive.test, NUM_TEST)):
        size = n // len(of_split)
        for i, name in enumerate(of_split):
            files[name] = split_content(archive, split, range(i * size, (i + 1) * size))
    return Small(replace(archive, members={name: md5(content) for name, content in files.items()}), files)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_folder(folder: Path, small: Small) -> Path:
    (folder / small.archive.folder).mkdir(parents=True)
    for name, content in small.files.items():
        (folder / small.archive.folder / name).write_bytes(content)
    return folder


def archive_of(small: Small) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in small.files.items():
            entry = tarfile.TarInfo(f"{small.archive.folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


# Downloading


def test_download_whole(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new folder é" / "set.tar.gz"
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert server.ranges == [None]


def test_what_is_there_already_is_not_fetched(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    target.write_bytes(CONTENT)
    download(server.url, target, CONTENT_MD5)
    assert server.ranges == []


def test_what_is_there_but_wrong_is_replaced(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    target.write_bytes(b"damaged")
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT


def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.script = ["break", "break", "range"]
    target = tmp_path / "set.tar.gz"
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_next_call_goes_on_where_the_last_one_stopped(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    part_of(target).write_bytes(CONTENT[:777])
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=777-"]
    assert not part_of(target).exists()


def test_server_that_ignores_range_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.script = ["break", "whole"]
    target = tmp_path / "set.tar.gz"
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT


def test_complete_part_needs_nothing_more(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    part_of(target).write_bytes(CONTENT)
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("length", [777, len(CONTENT), len(CONTENT) + 5])
def test_part_that_does_not_fit_is_fetched_again_from_zero(server: Server, tmp_path: Path, length: int) -> None:
    target = tmp_path / "set.tar.gz"
    part_of(target).write_bytes(bytes(length))
    download(server.url, target, CONTENT_MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={length}-", None]


def test_content_encoding_does_not_change_the_bytes(server: Server, tmp_path: Path, small: Small) -> None:
    server.script = ["encoded"]
    server.content = archive_of(small)
    target = tmp_path / "set.tar.gz"
    download(server.url, target, hashlib.md5(server.content).hexdigest())
    assert target.read_bytes() == server.content


@pytest.mark.parametrize("begun", [False, True])
def test_wrong_md5_leaves_nothing(server: Server, tmp_path: Path, begun: bool) -> None:
    server.script = ["damaged"]
    target = tmp_path / "set.tar.gz"
    if begun:
        part_of(target).write_bytes(CONTENT[:777])
    with pytest.raises(DataError, match=rf"is not the official file: its md5 is \w+, and should be {CONTENT_MD5}"):
        download(server.url, target, CONTENT_MD5)
    assert list(tmp_path.iterdir()) == []
    assert server.ranges == (["bytes=777-", None] if begun else [None])


def test_connection_that_always_breaks_is_an_error_that_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.script = ["break"]
    target = tmp_path / "set.tar.gz"
    with pytest.raises(DataError, match=r"the connection broke .*Run the same command again") as error:
        download(server.url, target, CONTENT_MD5)
    assert "\n" not in str(error.value)
    assert "no network" not in str(error.value)
    assert len(server.ranges) == downloads.ATTEMPTS
    assert CONTENT.startswith(part_of(target).read_bytes())
    assert not target.exists()


@pytest.mark.parametrize("archive", [CIFAR_10, CIFAR_100], ids=lambda archive: archive.dataset)
def test_no_network_names_the_reason_and_the_ways_out(archive: Archive, closed_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port}/{archive.file}"
    message = (
        rf"^cannot download {url}: no network \(Connection refused\)\. Copy {archive.file} to this machine and run: "
        rf"cifarscale shards build --data {archive.dataset} --source PATH; or train on built-in data: --data synthetic$"
    )
    with pytest.raises(DataError, match=message):
        cifar_source(replace(archive, url=url), None, tmp_path)


def test_error_of_the_server_is_named(server: Server, tmp_path: Path) -> None:
    server.script = ["503"]
    with pytest.raises(DataError, match="the server answers 503 Service Unavailable"):
        download(server.url, tmp_path / "set.tar.gz", CONTENT_MD5)


def test_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CifarscaleError, match=r"^cannot write .*file"):
        download(server.url, tmp_path / "file" / "set.tar.gz", CONTENT_MD5)
    assert server.ranges == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_named(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    part_of(target).symlink_to("/dev/full")
    with pytest.raises(CifarscaleError, match=r"^cannot write .*: No space left on device"):
        download(server.url, target, CONTENT_MD5)


# Reading


def assert_small_set(small: Small, source: Path | None, cache_dir: Path) -> None:
    found = cifar_source(small.archive, source, cache_dir)
    superclasses = ("fish", "people") if small.archive.coarse_names else ()
    assert (found.dataset, found.fine_names) == (small.archive.dataset, ("apple", "baby"))
    assert found.coarse_names == superclasses
    assert [split.name for split in found.splits] == ["train", "test"]
    for split, n in zip(found.splits, (NUM_TRAIN, NUM_TEST), strict=True):
        assert (split.images.dtype, split.fine.dtype) == (np.uint8, np.int64)
        assert split.images.flags.c_contiguous
        expected = np.array([pixel(i) for i in range(n)]).reshape(n, 3, 32, 32)
        np.testing.assert_array_equal(split.images, np.moveaxis(expected, 1, 3))
        assert split.fine.tolist() == [i % 2 for i in range(n)]
        assert (split.coarse is None) == (not superclasses)
        assert split.coarse is None or split.coarse.tolist() == [1 - i % 2 for i in range(n)]
        assert split.filenames == tuple(f"{split.name}_s_{i:06d}.png" for i in range(n))


def test_folder_around_the_files_or_theirs(small: Small, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "with space", small)
    assert_small_set(small, folder, tmp_path)
    assert_small_set(small, folder / small.archive.folder, tmp_path)


def test_archive(small: Small, tmp_path: Path) -> None:
    archive = tmp_path / "any name.tgz"
    archive.write_bytes(archive_of(small))
    assert_small_set(small, archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]  # nothing is extracted


def test_downloaded_archive(server: Server, small: Small, tmp_path: Path) -> None:
    server.content = archive_of(small)
    url = server.url.replace(CIFAR_100.file, small.archive.file)
    small = replace(small, archive=replace(small.archive, url=url, md5=md5(server.content)))
    assert_small_set(small, None, tmp_path / "cache")
    assert (tmp_path / "cache" / small.archive.file).read_bytes() == server.content
    assert_small_set(small, None, tmp_path / "cache")
    assert len(server.ranges) == 1


def test_a_small_set_becomes_shards_by_its_name(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = "CIFAR_100" if small.archive.coarse_names else "CIFAR_10"
    monkeypatch.setattr(f"cifarscale.data.cifar.{constant}", small.archive)
    source = write_folder(tmp_path / "source", small)
    manifest = build_shards(small.archive.dataset, tmp_path / "shards", 4, source)
    assert (manifest.dataset, manifest.fine_names) == (small.archive.dataset, ("apple", "baby"))
    assert manifest.coarse_of_fine == ((1, 0) if small.archive.coarse_names else ())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def written(small: Small, folder: Path, archived: bool) -> Path:
    """As an archive, or as a folder."""
    if not archived:
        return write_folder(folder / "set", small)
    (folder / "set.tar.gz").write_bytes(archive_of(small))
    return folder / "set.tar.gz"


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_wrong_member_is_never_unpickled(small: Small, tmp_path: Path, place: int, archived: bool) -> None:
    name = list(small.files)[place]
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists()  # the trap does work
    sprung.rmdir()
    wrong = replace(small, files=small.files | {name: trap})
    source = written(wrong, tmp_path, archived)
    with pytest.raises(
        DataError, match=rf"^'{name}' in .* is not {small.archive.title}'s: its md5 is .* should be \w{{32}}"
    ):
        cifar_source(small.archive, source, tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize("archived", [False, True])
def test_missing_member_is_named(small: Small, tmp_path: Path, archived: bool) -> None:
    source = written(small.without(small.archive.meta), tmp_path, archived)
    with pytest.raises(DataError, match=r"^cannot read .*meta"):
        cifar_source(small.archive, source, tmp_path)


def test_member_that_is_not_a_file_is_named(small: Small, tmp_path: Path) -> None:
    source = tmp_path / "set.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name in small.files:
            entry = tarfile.TarInfo(f"{small.archive.folder}/{name}")
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
    with pytest.raises(DataError, match=r"^cannot read .* is not a file"):
        cifar_source(small.archive, source, tmp_path)


def test_truncated_archive_is_an_error_wherever_it_ends(small: Small, tmp_path: Path) -> None:
    whole = archive_of(small)
    source = tmp_path / "set.tar.gz"
    for length in range(0, len(whole) * 9 // 10, len(whole) // 40):
        source.write_bytes(whole[:length])
        with pytest.raises(DataError):
            cifar_source(small.archive, source, tmp_path)


def test_damaged_archive_is_an_error_wherever_the_damage_is(small: Small, tmp_path: Path) -> None:
    whole = archive_of(small)
    source = tmp_path / "set.tar.gz"
    for place in range(12, len(whole) - 2000, len(whole) // 40):
        source.write_bytes(whole[:place] + bytes(99) + whole[place + 99 :])
        with pytest.raises(DataError):
            cifar_source(small.archive, source, tmp_path)


@pytest.mark.parametrize("name", ["missing", "text.tar.gz", "empty folder"])
def test_source_that_is_something_else(small: Small, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.tar.gz").write_text("not an archive")
    (tmp_path / "empty folder").mkdir()
    with pytest.raises(DataError, match=rf"^cannot read .*{name}.*{small.archive.folder}") as error:
        cifar_source(small.archive, tmp_path / name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.real_data
def test_real_set(real_data: Path, tmp_path: Path) -> None:
    found = cifar_source(CIFAR_100, real_data, tmp_path)
    assert (len(found.fine_names), len(found.coarse_names)) == (100, 20)
    assert (found.fine_names[0], found.coarse_names[0]) == ("apple", "aquatic_mammals")
    for split, n in zip(found.splits, (50_000, 10_000), strict=True):
        assert split.images.shape == (n, 32, 32, 3)
        assert (np.bincount(split.fine) == n // 100).all()
        assert (np.bincount(split.coarse) == n // 20).all()
        assert len(set(zip(split.fine, split.coarse, strict=True))) == 100  # each class has one superclass


# Training


def test_it_is_trained_evaluated_and_reported(small: Small, tmp_path: Path) -> None:
    (tmp_path / small.archive.file).write_bytes(archive_of(small))
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shards(cifar_source(small.archive, tmp_path / small.archive.file, tmp_path), shards, 4, lambda _: None)
    short = {"training.max_steps": 4, "training.global_batch_size": 8, "evaluation.every": 2}
    run = cs.train("cnn", set=short, data=shards, device="cpu", run_dir=tmp_path / "run")
    evaluated = cs.evaluate(run, data=shards)
    assert evaluated["samples"] == NUM_TEST
    assert ("superclasses" in evaluated) == bool(small.archive.coarse_names)
    assert set(evaluated["classes"]) == {"apple", "baby"}
    write_report([run.path], tmp_path / "report.html", str(shards))
    assert small.archive.dataset in (tmp_path / "report.html").read_text(encoding="utf-8")
