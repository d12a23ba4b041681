"""Secrets of the environment are blacked out in text for people, and refused in data."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.loras import lora_of, saved_lora
from fakes.runs import FakeExecutor, Project

from hv15_batch.record import ClipRecord
from hv15_batch.redaction import redacted, secret_values
from hv15_batch.run import session
from hv15_batch.rundir.log import RunLog, read_records
from hv15_batch.rundir.text_log import text_log

Command = Callable[..., Answer]
TOKEN = "hf_plantedQwErTyUiOpAsDfGhJkLzXc"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HF_HOME", str(home))
    return home


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "apikey",
        "PGPASSWORD",
        "DB_PASSWD",
        "GITHUB_PAT",
        "MYTOKEN",
        "CREDENTIALS",
        "SSH_PASSPHRASE",
    ],
)
def test_the_value_of_a_variable_whose_name_says_secret_is_blacked_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "s3cr3t/of+mine")

    assert redacted("before s3cr3t/of+mine after") == "before *** after"
    assert redacted("in an address: ?x=s3cr3t%2Fof%2Bmine") == "in an address: ?x=***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "disabled"),
        ("PWD", "/somewhere/else"),
        ("KEYBOARD", "qwertz-layout"),
        ("MONKEY", "chimpanzee"),
        ("SSH_AUTH_SOCK", "/tmp/agent.1234"),
        ("HF_TOKEN_PATH", "/somewhere/token"),
        ("TOKEN_TTL_SECONDS", "86400000"),
        ("GOOGLE_APPLICATION_CREDENTIALS", sys.executable),
        ("API_KEY", "short"),
        ("PASSWORD", ""),
    ],
)
def test_other_variables_paths_and_short_values_stay_readable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert redacted(f"a word like {value} stays") == f"a word like {value} stays"


def test_a_login_in_an_address_is_blacked_out_with_or_without_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:p%40ssw0rd1@proxy.invalid:3128")

    assert redacted("through http://user:p%40ssw0rd1@proxy.invalid:3128") == (
        "through http://***@proxy.invalid:3128"
    )
    assert redacted("password p@ssw0rd1 refused") == "password *** refused"
    assert redacted("of another one: ftp://a:b@host/x") == "of another one: ftp://***@host/x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"token {TOKEN} is invalid", "token *** is invalid"),
        ("Authorization: Bearer abcdef0123456789xyz", "Authorization: Bearer ***"),
        (
            "https://cdn/x?X-Amz-Signature=0123abc&part=1",
            "https://cdn/x?X-Amz-Signature=***&part=1",
        ),
        ("hf_hub_download and ssh://git@host stay", "hf_hub_download and ssh://git@host stay"),
        ("Basic colours stay", "Basic colours stay"),
    ],
)
def test_what_looks_like_a_secret_is_one_whatever_holds_it(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_the_token_that_a_login_stored_is_a_secret(own_home: Path) -> None:
    (own_home / "token").write_text("stored-token-of-another-form\n", encoding="utf-8")

    assert redacted("with stored-token-of-another-form.") == "with ***."


def test_each_line_of_a_private_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "-----BEGIN KEY-----\nMIIEabcdefgh0123\nqrstuvwx98765432\n-----END KEY-----"
    monkeypatch.setenv("DEPLOY_KEY", key)

    assert redacted("line 2: qrstuvwx98765432") == "line 2: ***"
    assert redacted(f"whole: {key!r}") == "whole: '***'"
    assert redacted("-----BEGIN KEY----- stays") == "-----BEGIN KEY----- stays"


def test_the_longer_of_two_secrets_is_not_cut_by_the_shorter() -> None:
    secrets = secret_values({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefghijkl"})

    assert set(secrets) == {"abcdefgh", "abcdefghijkl"}


# -- where text leaves ------------------------------------------------------------------------


def test_run_log_has_no_secret_in_lines_and_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    logger = logging.getLogger("test")
    with text_log(tmp_path / "run.log"):
        logger.info("with %s", TOKEN)
        try:
            raise RuntimeError(f"refused {TOKEN}")
        except RuntimeError:
            logger.exception("failed")

    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert TOKEN not in text
    assert "RuntimeError: refused ***" in text


def test_the_typed_line_is_kept_without_secrets_and_is_no_advice(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "run", partial(session.run, make_executor=FakeExecutor))
    (tmp_path / "p.csv").write_text("id,prompt\ncat,fail\n", encoding="utf-8")
    tell = "notify.command=true 'https://me:planted@host/x'"

    answer = command("p.csv", "model=tiny_t2v", "run_dir=out", "only=cat", tell)

    assert answer.code == 3
    (run_log,) = Path("out/runs").glob("*/run.log")
    first = run_log.read_text(encoding="utf-8").splitlines()[0]
    typed = "hv15-batch p.csv model=tiny_t2v run_dir=out only=cat"
    assert first.endswith(f": typed: {typed} " + shlex.quote(tell.replace("me:planted", "***")))
    status = Path("out/status.json").read_text(encoding="utf-8")
    page = Path("out/index.html").read_text(encoding="utf-8")
    for text in (answer.out, status, page):
        assert typed not in text
        assert "host/x" not in text
    assert "type again in any case: notify.command" in answer.out
    assert f"resume with: hv15-batch resume={tmp_path / 'out'}\n" in answer.out


def test_the_log_has_none_whoever_made_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    RunLog(tmp_path, "run").append(ClipRecord(error_message=f"no {TOKEN}", prompt="hf_ is fine"))

    (row,) = read_records(tmp_path).to_pylist()
    assert (row["error_message"], row["prompt"]) == ("no ***", "hf_ is fine")


def test_a_secret_is_not_cut_in_two_where_a_long_message_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hv15_batch.dispatch.attempt import MAX_ERROR_CHARACTERS, Attempt

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    attempt = Attempt(ClipRecord(clip_id="a"))
    with attempt.failing():
        raise RuntimeError("x" * (MAX_ERROR_CHARACTERS - 10) + TOKEN)

    message = attempt.record().error_message
    assert message is not None
    assert message.endswith("xxx***")


def test_a_message_of_the_command_line_and_a_traceback_have_none(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    answer = command(f"{TOKEN}.csv")
    assert (answer.code, TOKEN in answer.err) == (2, False)

    code = (
        "import sys; from hv15_batch.redaction import print_redacted;"
        f"sys.excepthook = print_redacted; raise RuntimeError({TOKEN!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("RuntimeError: ***\n")


# -- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row", "column"),
    [
        ("prompt", f"a sign says {TOKEN}", "prompt"),
        ("id,prompt", f"{TOKEN},a cat", "id"),
        ("prompt,tag_who", f"a cat,{TOKEN}", "tag_who"),
        ("prompt,loras", f"a cat,{TOKEN}.safetensors", "loras"),
    ],
)
def test_a_manifest_that_holds_a_secret_is_refused_and_the_value_not_shown(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    header: str,
    row: str,
    column: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "p.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    files = ["p.csv"]
    if column == "loras":
        saved_lora(tmp_path / f"{TOKEN}.safetensors", lora_of("tiny_t2v"))
        files.append(f"{TOKEN}.safetensors")

    answer = command("p.csv", "model=tiny_t2v")

    assert answer.code == 2
    assert answer.err == (
        f"p.csv:2: {column}=***: holds the value of HF_TOKEN, which would be in log, video and "
        "page; take it out.\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_setting_that_holds_a_secret_is_refused_because_settings_are_stored(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "planted-hook-token")
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v", "notify.command=curl https://x/planted-hook-token")

    assert answer.code == 2
    assert answer.err == (
        "notify.command: holds the value of HOOK_TOKEN, which would be stored in "
        "runs/*/config.yaml; leave it out, and let what needs it read the environment.\n"
    )


def test_a_prompt_that_only_looks_like_a_secret_stays_exact(tmp_path: Path) -> None:
    project = Project(tmp_path)
    prompt = "a sign reads http://user:pass@host and hf_abcdefghijklmnopqrstuvwxyz"
    project.write("prompt", prompt)

    assert project.run() == 0

    assert [r["prompt"] for r in project.records()] == [prompt]
    assert [row["prompt"] for row in project.plan()] == [prompt]
    data = project.run_dir.page.with_name("assets") / "data.js"
    assert prompt in data.read_text(encoding="utf-8")
