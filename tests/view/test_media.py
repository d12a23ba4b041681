"""What is handed out: files that the log names, beneath the run, in ranges, few at a time."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.pages import make_run, moving_clip, record
from fakes.served import Client, serving

CLIP = "/media/0/clips/a.mp4"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "run"
    clips = [record("a"), record("lossless", 1, file="clips/lossless.mkv")]
    make_run(folder, clips, clips, is_playable=True)
    (folder / "clips" / "unlogged.mp4").write_bytes(b"secret")
    (folder / "index.html").write_text("<script>evil</script>", encoding="utf-8")
    (folder / "assets").mkdir()
    (folder / "assets" / "page.js").write_text("evil", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def client(run_dir: Path) -> Iterator[Client]:
    with serving(run_dir) as let_in:
        yield let_in


def test_logged_clips_and_their_pictures_have_fixed_types(client: Client) -> None:
    video, thumb = moving_clip()

    clip, picture = client.get(CLIP), client.get("/media/0/thumbs/a.jpg")

    assert (clip.status, clip.headers["content-type"], clip.body) == (200, "video/mp4", video)
    assert (picture.headers["content-type"], picture.body) == ("image/jpeg", thumb)


def test_page_and_scripts_come_from_the_package(client: Client) -> None:
    assert "evil" not in client.get("/").text
    assert "evil" not in client.get("/assets/page.js").text
    assert client.get("/assets/page.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/assets/page.css").headers["content-type"].startswith("text/css")


def test_scripts_are_sent_again_only_when_they_changed(client: Client) -> None:
    whole = client.get("/assets/plotly.min.js")

    again = client.get("/assets/plotly.min.js", **{"If-None-Match": whole.headers["etag"]})

    assert (whole.status, len(whole.body) > 1_000_000) == (200, True)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", whole.headers["etag"])
    assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/media/0/clips/unlogged.mp4", "/media/0/clips/lossless.mkv", "/media/0/status.json",
        "/media/0/clips/../../../../etc/passwd", "/media/0/clips/%2e%2e/status.json",
        "/media/0/clips/..%2f..%2fetc%2fpasswd", "/media/0//etc/passwd", "/media/1/clips/a.mp4",
        "/media/0/clips/a.mp4%00.jpg", "/media/0/./clips/a.mp4", "/media/0/clips//a.mp4",
        "//etc/passwd", "/assets/../../rundir/paths.py", "/assets/..%2frender.py", "/index.html",
        "/media/-1/clips/a.mp4", "/media/0/clips/A.MP4", "/clips/a.mp4",
    ],
)  # fmt: skip
def test_no_other_path_gives_anything(client: Client, path: str) -> None:
    assert client.get(path).status == 404


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=5-", 5, None), ("bytes=-7", -7, None), ("bytes=3-3", 3, 4),
     ("bytes=10-99999999999", 10, None)],
)  # fmt: skip
def test_a_range_is_sent(client: Client, asked: str, start: int, stop: int | None) -> None:
    video = moving_clip()[0]
    answer = client.get(CLIP, Range=asked)

    assert answer.status == 206
    assert answer.body == video[start:stop]
    first = start % len(video)
    last = first + len(answer.body) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(video)}"
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=9-3", "bytes=-0"])
def test_a_range_without_a_byte_is_refused(client: Client, asked: str) -> None:
    answer = client.get(CLIP, Range=asked)

    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(moving_clip()[0])}"


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "x"])
def test_a_range_of_another_kind_gives_the_whole(client: Client, asked: str) -> None:
    answer = client.get(CLIP, Range=asked)
    assert (answer.status, answer.body) == (200, moving_clip()[0])


def test_a_file_is_sent_again_only_when_it_changed(client: Client) -> None:
    tag = client.get(CLIP).headers["etag"]

    assert client.get(CLIP, **{"If-None-Match": tag}).status == 304
    part = client.get(CLIP, **{"If-Range": '"other"', "Range": "bytes=0-1"})
    assert part.status == 200


def test_head_sends_no_bytes(client: Client) -> None:
    answer = client.send("HEAD", CLIP, {"Cookie": client.cookie})
    assert answer.headers["content-length"] == str(len(moving_clip()[0]))
    assert answer.body == b""


def test_a_log_that_names_files_elsewhere_gets_none(tmp_path: Path) -> None:
    names = {
        "up": "../../../../../../etc/passwd", "absolute": "/etc/passwd", "key": "../key.mp4",
        "page": "clips/page.html", "inside": "clips/../../key.mp4", "odd": "clips/odd\0.mp4",
    }  # fmt: skip
    clips = [record("a"), *(record(n, i + 1, file=None) for i, n in enumerate(names))]
    run_dir = make_run(tmp_path / "run", [], clips)
    (tmp_path / "key.mp4").write_bytes(b"secret")
    from hv15_batch.rundir.log import RunLog

    log = RunLog(run_dir / "log", "20261124T230000-0000-bbbb")
    for number, (name, file) in enumerate(names.items()):
        log.append(record(name, number + 1, file=file))
        for made in {Path(file.replace("\0", "")).name, "odd.mp4"}:
            (run_dir / "clips" / made).write_bytes(b"bait")
            (run_dir / "thumbs" / f"{Path(made).stem}.jpg").write_bytes(b"bait")

    with serving(run_dir) as client:
        named = {file for _, file in client.view.watch.seen.served.files.values()}
        for file in named:
            assert file.startswith("thumbs/")
        for file in names.values():
            path = f"/media/0/{file}".replace("\0", "%00")
            assert client.get(path).status == 404
        assert client.get("/media/0/../key.mp4").status == 404


@pytest.mark.parametrize("what", ["clip", "folder", "pipe", "thumbs"])
def test_a_link_is_not_followed(tmp_path: Path, what: str) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a")], is_playable=True)
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("a.mp4", "a.jpg"):
        (secret / name).write_bytes(b"secret")
    with serving(run_dir) as client:
        address, target = {
            "clip": (CLIP, run_dir / "clips" / "a.mp4"),
            "pipe": (CLIP, run_dir / "clips" / "a.mp4"),
            "folder": (CLIP, run_dir / "clips"),
            "thumbs": ("/media/0/thumbs/a.jpg", run_dir / "thumbs"),
        }[what]
        assert client.get(address).status == 200
        target.rename(tmp_path / "away")
        if what == "pipe":
            os.mkfifo(target)
        else:
            target.symlink_to(secret / "a.mp4" if what == "clip" else secret)

        answer = client.get(address)

        assert (answer.status, b"secret" in answer.body) == (404, False)


def test_the_run_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")], is_playable=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with serving(tmp_path / "link") as client:
        assert client.get(CLIP).status == 200


def test_at_most_32_streams_are_open(client: Client) -> None:
    with ExitStack() as opened:
        for _ in range(32):
            next(opened.enter_context(client.events()))
        assert client.get("/events").status == 503
        assert client.get(CLIP).status == 503
        assert client.get("/").status == 200
    until(lambda: client.get(CLIP).status == 200)


def test_readers_that_do_not_read_take_at_most_32_streams(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a")])
    with (run_dir / "clips" / "a.mp4").open("wb") as file:
        file.truncate(64 * 2**20)
    with serving(run_dir) as client, ExitStack() as opened:
        for _ in range(40):
            reader = opened.enter_context(socket.create_connection(("127.0.0.1", client.port)))
            lines = (f"GET {CLIP} HTTP/1.1", f"Host: {client.host}", f"Cookie: {client.cookie}")
            reader.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        until(lambda: client.get(CLIP).status == 503)
        descriptors = os.listdir("/proc/self/fd")
        held = [d for d in descriptors if target_of(d).endswith("clips/a.mp4")]
        assert len(held) == 32
        opened.close()
        until(lambda: client.send("HEAD", CLIP, {"Cookie": client.cookie}).status == 200)


def target_of(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def until(condition: object) -> None:
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_film_of_the_plan_is_handed_out_and_no_other(tmp_path: Path) -> None:
    clips = [record(name, n, file=f"clips/{name}.mp4") for n, name in enumerate("abcd")]
    films = {"a": "story", "b": "../../key", "c": "linked", "d": "secret/inner"}
    folder = make_run(tmp_path / "run", clips, clips, is_playable=True, films=films)
    (tmp_path / "key.mp4").write_bytes(b"secret")
    (folder / "films" / "secret").mkdir(parents=True)
    for name in ("story.mp4", "unplanned.mp4", "secret/inner.mp4"):
        (folder / "films" / name).write_bytes(moving_clip()[0])
    (folder / "films" / "linked.mp4").symlink_to(tmp_path / "key.mp4")

    with serving(folder) as client:
        page = client.get("/").text
        assert re.findall(r'src="(media/0/films[^"]*)"', page) == [
            "media/0/films/story.mp4", "media/0/films/linked.mp4",
        ]  # fmt: skip
        film = client.get("/media/0/films/story.mp4")
        assert (film.status, film.headers["content-type"]) == (200, "video/mp4")
        assert film.body == moving_clip()[0]
        for name in ("linked.mp4", "unplanned.mp4", "secret/inner.mp4", "../../key.mp4"):
            assert client.get(f"/media/0/films/{name}").status == 404


def test_a_folder_of_films_that_is_a_link_gives_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [record("a")], [record("a")], films={"a": "story"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "story.mp4").write_bytes(b"secret")
    (folder / "films").symlink_to(tmp_path / "elsewhere")

    with serving(folder) as client:
        assert client.get("/media/0/films/story.mp4").status == 404
