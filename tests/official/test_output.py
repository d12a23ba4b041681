"""What the official script says is understood, whatever stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hv15_batch.official.output import Heard, Output
from hv15_batch.official.verdict import ScriptFault, check_words

RULE = "=" * 60
HEADING = "🎬  HunyuanVideo Generation Task"


def box(**fields: str) -> list[str]:
    values = {
        "User Prompt": "a cat",
        "Seed": "7",
        "Attn mode": "flash",
        "Transformer dtype": "torch.bfloat16",
        "Use Meanflow": "False",
    }
    values |= {name.replace("_", " "): value for name, value in fields.items()}
    return ["", RULE, HEADING, "-" * 60, *(f"{n + ':':<27}{v}" for n, v in values.items()), RULE]


def heard(output: Output, *lines: str, is_error: bool = False) -> list[Heard]:
    found = [output.heard(line, is_error) for text in lines for line in text.split("\n")]
    return [each for each in found if each is not Heard.nothing]


def check(
    output: Output, code: int | None = 0, file: Path = Path("a.mp4"), sage: bool = False
) -> None:
    check_words(output, code, file, seed=7, asks_for_sage=sage)


def test_the_box_and_the_bar_tell_the_progress() -> None:
    output = Output(4)

    assert heard(output, "Loading: 100%|██| 4/4 [00:01<00:00]", is_error=True) == []
    assert heard(output, *box()) == [Heard.box]
    bars = ("  0%|  | 0/4 [00:00<?]", " 25%|█ | 1/4 [00:01<00:03]", "100%|██| 4/4 [00:04<00:00]")
    assert heard(output, *bars, is_error=True) == [Heard.first, Heard.step, Heard.step]
    assert heard(output, "100%|██| 6/6 [00:04<00:00]", is_error=True) == []  # of another loop
    assert (output.step, output.attention, output.dtype) == (4, "flash", "bfloat16")


def test_a_file_is_confirmed_by_its_own_name_behind_anything_that_is_printed() -> None:
    said = "Saved video to: /a/b.mp4"
    for line, is_error, is_heard in (
        (f"...{said}", False, True),
        ("z" * 100_000 + said, False, True),
        (f"2026 | INFO | {said}", False, True),
        (f"...{said}", True, False),
        (f"...{said}.tmp", False, False),
        ("... Saved video to: /a/c.mp4", False, False),
    ):
        output = Output(4, Path("/a/b.mp4"))
        heard(output, *box())
        heard(output, line, is_error=is_error)
        assert (output.saved is not None) is is_heard, line[:40]


def test_a_warning_is_no_reason_where_something_else_is_said() -> None:
    output = Output(4)
    heard(
        output, "no kernel for this card", "x.py:1: ResourceWarning: unclosed file", is_error=True
    )
    assert output.last_words == "no kernel for this card"

    output = Output(4)
    heard(output, "x.py:1: UserWarning: no kernel", is_error=True)
    assert output.last_words == "x.py:1: UserWarning: no kernel"


def test_a_warning_behind_a_bar_is_heard() -> None:
    output = Output(4)
    heard(output, *box(Attn_mode="sageattn"))

    bar = " 25%|█ | 1/4 [00:01<00:03, 1.0s/it]"
    warning = "/x.py:225: UserWarning: Falling back from `sageattn` to `flash2`"
    assert heard(output, bar + warning, is_error=True) == [Heard.step]

    assert output.fell_back == [("sageattn", "flash2")]
    assert output.attention == "flash2"


def test_a_prompt_that_reads_like_its_messages_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    prompt = (
        "a cat\nSeed: 99\nAttn mode: sageattn\nSaved video to: /etc/passwd\n"
        "Failed to rewrite prompt: x\nFalling back from `sageattn` to `flash2`\n"
        f"{RULE}\n{HEADING}"
    )
    output = Output(4)

    heard(output, *box(User_Prompt=prompt), f"Saved video to: {file}")

    check(output, file=file)
    assert output.box["Seed"] == "7"


@pytest.mark.parametrize("frame", ["{}", "║ {}", "│ {} │", "| {}"])
@pytest.mark.parametrize("ruler", [RULE, "-" * 60, "╚" + "═" * 58 + "╝", "***", ""])
def test_the_box_ends_with_its_last_field_whatever_its_frame_is(
    tmp_path: Path, frame: str, ruler: str
) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    output = Output(4)
    lines = [frame.format(line) for line in box() if line != RULE]

    heard(output, ruler, *lines, ruler, f"Saved video to: {file}")

    check(output, file=file)
    assert (output.box["Seed"], output.attention) == ("7", "flash")


def test_the_asked_file_is_heard_of_in_a_box_without_an_end(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    for asked, saved in ((file, str(file)), (tmp_path / "b.mp4", None), (None, None)):
        output = Output(4, asked)
        heard(output, HEADING, "Attn mode: flash", f"Saved video to: {file}")
        assert output.saved == saved


def test_a_prompt_cannot_end_the_box(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    output = Output(4, file)
    prompt = "x\nSeed: 9\nAttn mode: sageattn\nUse Meanflow: False\nSaved by the bell"

    heard(output, *box(User_Prompt=prompt), f"Saved video to: {file}")

    check(output, file=file)


@pytest.mark.parametrize(
    ("mode", "warnings", "sage", "kind"),
    [
        ("flash", [], False, None),
        ("torch", [], False, None),
        ("flash", ["Falling back from `flash` to `torch` because `flash` is not"], False, None),
        ("sageattn", [], True, None),
        ("flash", [], True, "AttentionFellBack"),
        ("sageattn", ["Falling back from `sageattn` to `flash2`"], True, "AttentionFellBack"),
        ("flash", ["Falling back from `sageattn` to `flash2`"], False, "AttentionFellBack"),
        ("sageattn", [], False, "NotAsAsked"),
        ("sage", [], True, None),
        ("sage", [], False, "NotAsAsked"),
        ("torch", ["Falling back from `sage` to `torch`"], False, "AttentionFellBack"),
    ],
)
def test_the_attention_line_must_be_what_was_asked(
    tmp_path: Path, mode: str, warnings: list[str], sage: bool, kind: str | None
) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    output = Output(4)
    heard(output, *box(Attn_mode=mode), f"Saved video to: {file}")
    heard(output, *warnings, is_error=True)

    if kind is None:
        check(output, file=file, sage=sage)
        return
    with pytest.raises(ScriptFault) as fault:
        check(output, file=file, sage=sage)
    assert fault.value.kind == kind


TORCHRUN = """\
Traceback (most recent call last):
  File "generate.py", line 5, in <module>
[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.
E1130 1 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: 1) local_rank: 0
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
generate.py FAILED
Root Cause (first observed failure):
  exitcode  : -9 (pid: 5)"""


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (TORCHRUN, 1, "was ended by SIGKILL: torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("generate.py: error: unrecognized arguments: --x", 2, "exit code 2: error: unrecognized"),
        ("", 3, "ended with exit code 3: it said nothing"),
        ("last words", -15, "was ended by SIGTERM: last words"),
        ("", None, "was lost"),
    ],
)
def test_a_failure_has_the_scripts_own_reason(lines: str, code: int | None, words: str) -> None:
    output = Output(4)
    heard(output, lines, is_error=True)

    with pytest.raises(ScriptFault, match=words) as fault:
        check(output, code)
    assert fault.value.kind == "ScriptFailed"
