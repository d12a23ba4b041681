"""Who gets in: hosts, the address for one use, the cookie, and what a change needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.pages import make_run, record
from fakes.served import Client, serving


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "run"
    clips = [record("a", file_sha256="a" * 64, settings_sha256="1" * 64)]
    return make_run(folder, clips, clips, status={"state": "rendering"}, is_playable=True)


@pytest.fixture(scope="module")
def client(run_dir: Path) -> Iterator[Client]:
    with serving(run_dir) as let_in:
        yield let_in


def test_the_address_has_256_bits_and_is_exchanged_for_a_cookie(run_dir: Path) -> None:
    with serving(run_dir, is_let_in=False) as client:
        match = re.fullmatch(
            rf"http://127\.0\.0\.1:{client.port}/\?token=([0-9a-f]{{64}})", client.view.gate.address
        )
        assert match is not None
        path = client.path_with_token

        answer = client.send("GET", path)

        assert answer.status == 303
        assert answer.headers["location"] == "/"
        name, *flags = (part.strip() for part in answer.headers["set-cookie"].split(";"))
        assert re.fullmatch(rf"hv15_{client.port}=[0-9a-f]{{64}}", name)
        assert {flag.lower() for flag in flags} == {"httponly", "path=/", "samesite=strict"}
        assert match[1] not in name
        assert client.send("GET", path).status == 403  # it worked once
        assert client.send("GET", path, {"Cookie": name}).headers["location"] == "/"
        assert client.said == [client.view.gate.address]
        assert client.send("GET", client.path_with_token).status == 303  # another browser


@pytest.mark.parametrize("path", ["/", "/events", "/assets/data.js", "/media/0/clips/a.mp4", "/x"])
@pytest.mark.parametrize("cookie", ["", "hv15_{port}=", "hv15_{port}=" + "0" * 64, "hv15_1={key}"])
def test_nothing_is_shown_without_the_cookie(client: Client, path: str, cookie: str) -> None:
    key = client.cookie.partition("=")[2]
    text = cookie.format(port=client.port, key=key)
    for query in ("", "?token=" + "0" * 64, "?token=", f"?token={key}"):
        answer = client.send("GET", path + query, {"Cookie": text} if text else {})
        assert answer.status == 403
        assert "set-cookie" not in answer.headers
        assert "prompt of" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST:8888", "[::1]:1"])
def test_tunnels_may_use_any_port(client: Client, host: str) -> None:
    assert client.get("/", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8015",
        "127.0.0.1:8015@evil.example", "0.0.0.0", "127.1", "[::]", "localhost:", "",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(client: Client, host: str) -> None:
    assert client.get("/", Host=host).status == 403
    assert client.send("GET", client.path_with_token, {"Host": host}).status == 403
    assert client.post("/pause", {"run": 0, "pause": True}, Host=host).status == 403


def test_every_answer_has_the_headers_that_keep_others_out(client: Client) -> None:
    answers = [client.get(path) for path in ("/", "/assets/page.js", "/media/0/clips/a.mp4", "/x")]
    for answer in (*answers, client.send("GET", "/")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers


def test_a_change_needs_the_pages_own_script(client: Client, run_dir: Path) -> None:
    wanted = {"run": 0, "pause": True}
    other = "http://localhost:1234"
    for headers in (
        {"Origin": ""}, {"Origin": other}, {"Origin": "null"}, {"Origin": "http://evil.example"},
        {"Origin": f"http://{client.host}.evil.example"},
        {"X-HV15-Token": ""}, {"X-HV15-Token": "0" * 64}, {"X-HV15-Token": client.token[:-1]},
        {"Cookie": ""}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        assert client.post("/pause", wanted, **headers).status == 403, headers
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        assert client.post("/pause", wanted, **{"Content-Type": kind}).status == 415, kind
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert client.send(method, "/pause", {"Cookie": client.cookie}).status in (404, 405)
    assert not (run_dir / "pause").exists()

    assert client.post("/pause", wanted).status == 200
    assert (run_dir / "pause").exists()
    tunnel = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
    assert client.post("/pause", {"run": 0, "pause": False}, **tunnel).status == 200
    assert not (run_dir / "pause").exists()


@pytest.mark.parametrize(
    "body", [{}, {"run": 1, "pause": True}, {"run": -1, "pause": True}, {"run": "../x", "pause": 1},
             {"run": 0, "pause": True, "path": "/etc"}, [], "x"],
)  # fmt: skip
def test_a_change_that_is_not_understood_is_refused(
    client: Client, run_dir: Path, body: object
) -> None:
    before = sorted(p.name for p in run_dir.iterdir())

    answer = client.post("/pause", body)

    assert answer.status == 400
    assert answer.json()["fault"]
    assert sorted(p.name for p in run_dir.iterdir()) == before


def test_a_huge_change_is_refused(client: Client) -> None:
    assert client.post("/pause", {"x": "y" * 2**24}).status == 400


def test_a_link_named_pause_makes_nothing_elsewhere(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a")])
    (run_dir / "pause").symlink_to(tmp_path / "made")
    with serving(run_dir) as client:
        client.post("/pause", {"run": 0, "pause": True})

        assert not (tmp_path / "made").exists()
        client.post("/pause", {"run": 0, "pause": False})
        assert not (run_dir / "pause").is_symlink()


def test_a_page_of_another_site_can_follow_a_link_and_load_nothing(client: Client) -> None:
    for site in ("cross-site", "same-site"):
        for path in ("/assets/data.js", "/media/0/clips/a.mp4", "/events"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
            assert client.get(path, **headers).status == 403
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", **headers).status == 200


@pytest.mark.parametrize(
    "other", ["theme=dark mode", 'prefs={"a":1}', 'a="b', "a", "(a)=1", "a=1;", "a=\xe9", "a=b=c"]
)
def test_cookies_of_other_programs_do_not_shut_the_page(client: Client, other: str) -> None:
    for text in (f"{other}; {client.cookie}", f"{client.cookie}; {other}"):
        assert client.get("/", Cookie=text).status == 200
    assert client.get("/", Cookie=f"{other}; x{client.cookie}").status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_two_tunnels_do_not_share_a_cookie(run_dir: Path, host: str) -> None:
    with serving(run_dir, is_let_in=False) as client:
        browser = {}  # like a browser, which keeps one cookie of each name for all ports
        for port in ("8016", "8017"):
            answer = client.send("GET", client.path_with_token, {"Host": f"{host}:{port}"})
            name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
            assert name == f"hv15_{port}"
            browser[name] = value if port == "8016" else "of another server"
        cookies = "; ".join(f"{name}={value}" for name, value in browser.items())

        assert client.get("/", Host=f"{host}:8016", Cookie=cookies).status == 200
        assert client.get("/", Host=f"{host}:8017", Cookie=cookies).status == 403
        answer = client.send("GET", client.path_with_token, {"Host": host})
        assert answer.headers["set-cookie"].startswith(f"hv15_{client.port}=")
