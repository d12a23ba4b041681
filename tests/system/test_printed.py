"""Whatever is printed holds nothing that a terminal obeys, wherever its text came from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes.command import TINY, Answer
from PIL import Image

from hv15_batch import api, cli
from hv15_batch.record import ClipRecord
from hv15_batch.redaction import one_line, printable, printable_json, shown
from hv15_batch.run._progress import Progress
from hv15_batch.rundir.log import RunLog, read_records
from hv15_batch.rundir.text_log import text_log

Command = Callable[..., Answer]
MARKED = "\x1b]0;owned\x07\x1b[31mred\x9b2J\r\u202egpj.\x08\x7f\u2066\u200f"
"""Sets the title, colours, clears, goes back, turns around."""
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]"
)
"""Written down here once more: what the program does is not its own measure."""


def is_harmless(text: str) -> bool:
    return OBEYED.search(text) is None


# -- the printer ------------------------------------------------------------------------------


def test_what_a_terminal_obeys_is_written_out_and_all_else_stays() -> None:
    assert printable(MARKED).startswith("\\x1b]0;owned\\x07\\x1b[31mred\\x9b2J\\x0d\\u202egpj.")
    assert is_harmless(printable(MARKED))
    assert printable("a\tb\nc\r\nd") == "a\tb\nc\nd"
    kept = "雨后 é \u200d👩\u200d🚀 ‘quoted’ می\u200cخواهم עברית"
    assert printable(kept) == kept
    assert printable("\ud800\U000e0041") == "\\ud800\\U000e0041"
    assert one_line("a\nresume with: rm -rf ~\r\n") == "a resume with: rm -rf ~"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F)])
def test_every_control_character_is_written_out(code: int) -> None:
    text = printable(f"a{chr(code)}b")

    assert is_harmless(text)
    assert (chr(code) in text) == (chr(code) in "\t\n")


def test_json_says_the_same_without_what_a_terminal_obeys() -> None:
    value = {"a": MARKED + "\u2028\U000e0041", "b": ["é", 1]}
    text = json.dumps(value, ensure_ascii=False).replace(", ", ",\r\n")

    assert is_harmless(printable_json(text))
    assert json.loads(printable_json(text)) == value


def test_secrets_are_blacked_out_before_a_text_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abc\x1bdefghijk")

    assert shown("x abc\x1bdefghijk y\x1b") == "x *** y\\x1b"


# -- every subcommand -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, with marked texts wherever a manifest may have one."""
    folder = tmp_path_factory.mktemp("finished")
    row = {
        "id": "cat",
        "prompt": f'a sign says "OPEN{MARKED}" {MARKED}',
        "negative_prompt": MARKED,
        "tag_mood": MARKED,
    }
    (folder / "p.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for name in ("one", "two"):
        words = [str(folder / "p.jsonl"), f"run_dir={folder}/all/{name}", *TINY]
        assert cli.main([*words, "override.num_inference_steps=1"]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    mark_run(tmp_path / "all/one", tmp_path / "p.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mark_run(run: Path, manifest: Path) -> None:
    """Put marked texts wherever a run directory may hold one."""
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    status |= {
        "state": f"rendering{MARKED}\nresume with: hv15-batch evil",
        "message": f"{MARKED}\nresume with: hv15-batch evil",
        "clip_id": MARKED,
        "stage": MARKED,
        "hostname": MARKED,
        "type_again": [MARKED, "only"],
        "newer": MARKED,
    }
    text = json.dumps(status, ensure_ascii=False).replace("\x7f", "\\u007f")
    (run / "status.json").write_text(text, encoding="utf-8")
    (segment,) = (run / "log").glob("*.parquet")
    (row,) = read_records(run / "log").to_pylist()
    names = [name for name, value in row.items() if isinstance(value, str)]
    kept = {"settings_sha256", "denoise_sha256", "clip_id", "row_id", "status", "run_id", "file"}
    row |= {name: row[name] + MARKED for name in names if name not in {*kept, "latents_file"}}
    row |= {"quality_flag": MARKED, "status": "suspect"}
    schema = pq.read_schema(segment)
    pq.write_table(read_records(run / "log").from_pylist([row], schema=schema), segment)
    failed = ClipRecord(
        **{**row, "attempt": 1, "status": "failed", "settings_sha256": "e" * 64, "seed": 9,
           "error_type": MARKED, "error_message": MARKED, "file": None}
    )  # fmt: skip
    RunLog(run / "log", "20991122T000000-0000-abcd").append(failed)
    (run / "log" / f"foreign{MARKED.replace('/', '')}.parquet").write_bytes(segment.read_bytes())
    (config,) = run.glob("runs/*/config.yaml")
    text = config.read_text(encoding="utf-8")
    text = re.sub(r"^manifest:.*$", f"manifest: {json.dumps(str(manifest))}", text, flags=re.M)
    text = text.replace("preset: medium", f"preset: {json.dumps(MARKED)}")
    config.write_text(text, encoding="utf-8")
    facts = {"project": {"git_commit": MARKED}, "software": {"os": MARKED}, "hardware": {}}
    config.with_name("system.json").write_text(json.dumps(facts), encoding="utf-8")


COMMANDS = (
    ("p.jsonl", *TINY, "--dry-run"),
    ("p.jsonl", *TINY, "run_dir=all/one", "--dry-run"),
    ("report", "all/one"),
    ("report", "all/one", "all/two"),
    ("report", f"all/{MARKED}"),
    ("report", f"--{MARKED}"),
    ("status", "all/one"),
    ("status", "all/one", "--watch"),
    ("status", "all/one", "--json"),
    ("status", "all/one", "--pause"),
    ("status", "all/one", "--unpause"),
    ("status", f"all/{MARKED}"),
    ("references", "all/one"),
    ("references", f"{MARKED}", "x"),
    ("compare", "all/two", "all/one"),
    ("compare", "all/one", f"{MARKED}"),
    ("compare", "all/one"),
    ("recipe", "clip", "--out", "r.csv"),
    ("recipe", f"{MARKED}.mp4"),
    ("recipe", "clip", "--out", f"{MARKED}.txt"),
    (f"{MARKED}.csv",),
    ("bad.csv", *TINY, "--dry-run"),
    ("frames.jsonl", "model=tiny_i2v", "--dry-run"),
    ("p.jsonl", f"model={MARKED}"),
    ("p.jsonl", f"video.preset={MARKED}"),
    ("p.jsonl", *TINY, f"only={MARKED}"),
    ("p.jsonl", *TINY, f"{MARKED}=1"),
    ("prefetch", f"model={MARKED}"),
    ("broken.csv", *TINY, "--dry-run"),
    (f"--{MARKED}",),
    ("p.jsonl", *TINY, "run_dir=all/one", "override.num_inference_steps=2"),
    ("resume=all/one", "--dry-run"),
    ("resume=all/two", "limit=1"),
)


def test_no_subcommand_prints_what_a_terminal_obeys(folder: Path, command: Command) -> None:
    (folder / "bad.csv").write_text(f"prompt,{MARKED}\na,b\n".replace("\r", ""), encoding="utf-8")
    (folder / "broken.csv").write_text(
        f'prompt,num_frames\na,"{MARKED}"\n'.replace("\r", ""), encoding="utf-8"
    )
    name = "frame\x1b[31m\u202e.png"
    Image.new("RGB", (64, 48), "red").save(folder / name)
    rows = [{"prompt": f'"{MARKED}"', "image": name}, {"prompt": "x", "image": f"no{MARKED}.png"}]
    for number, wanted in ((1, "frames.jsonl"), (2, "missing.jsonl")):
        lines = [json.dumps(row) for row in rows[:number]]
        (folder / wanted).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (clip,) = (folder / "all/two/clips").iterdir()
    commands = [*COMMANDS, ("missing.jsonl", "model=tiny_i2v", "--dry-run")]
    codes = []
    for words in commands:
        answer = command(*(str(clip) if word == "clip" else word for word in words))
        codes.append(answer.code)
        printed = answer.out + answer.err
        assert printed, words
        assert is_harmless(printed), (words, OBEYED.findall(printed))
        assert "Traceback" not in printed
        assert "\nresume with: hv15-batch evil" not in printed
        if words[:3] == ("status", "all/one", "--json"):
            assert json.loads(answer.out)["message"].startswith(MARKED)
    assert codes.count(0) >= 10
    assert set(codes) <= {0, 2, 3}


def test_python_is_told_the_same(folder: Path) -> None:
    config = api.load_config("p.jsonl", *TINY)

    lines = api.plan(config).lines
    messages = [e.text for e in api.render(config) if isinstance(e, api.Message)]

    assert any("OPEN\\x1b" in line for line in lines)
    assert messages
    assert all(map(is_harmless, (*lines, *messages)))
    with pytest.warns(
        UserWarning, match="not part of this log, so hv15-batch ignores it"
    ) as warned:
        log = api.read_log("all/one")
    assert all(is_harmless(str(warning.message)) for warning in warned)
    assert MARKED in " ".join(map(str, log["prompt"]))  # data stays exact


def test_run_log_bars_and_lines_of_clips_hold_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    with text_log(tmp_path / "run.log", is_alone=False):
        logging.getLogger("hv15_batch.test").error("failed: %s", MARKED)
    assert is_harmless((tmp_path / "run.log").read_text(encoding="utf-8"))

    progress = Progress(tmp_path / "status.json", "r1", 1, 0)
    progress.say(MARKED)
    progress.end("done")
    assert is_harmless(capsys.readouterr().out)


def test_a_traceback_of_the_program_holds_none(tmp_path: Path) -> None:
    code = (
        "import sys; from hv15_batch import cli\n"
        "def broken(_): raise RuntimeError('\\x1b[31m' + sys.argv[1])\n"
        "cli.main = lambda: broken(1); cli.entry()"
    )
    words = [sys.executable, "-c", code, "\x1b[2J\x9b"]
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}

    ended = subprocess.run(words, capture_output=True, check=False, env=env, cwd=tmp_path)

    text = ended.stderr.decode("utf-8", "replace")
    assert ended.returncode == 1
    assert "RuntimeError: \\x1b[31m\\x1b[2J" in text
    assert is_harmless(text)


def test_the_page_shows_marked_texts_as_text(folder: Path, command: Command) -> None:
    markup = "</script><img src=x onerror=alert(1)>"
    status: dict[str, Any] = json.loads((folder / "all/one/status.json").read_text("utf-8"))
    status |= {"state": "stopped", "message": markup}
    (folder / "all/one/status.json").write_text(json.dumps(status), encoding="utf-8")

    assert command("report", "all/one").code == 0

    html = (folder / "all/one/index.html").read_text(encoding="utf-8")
    data = (folder / "all/one/assets/data.js").read_text(encoding="utf-8")
    assert markup not in html + data
    assert "<img src=x" not in html + data
