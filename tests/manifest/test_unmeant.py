"""Prompts of other tools: what is refused, what is reported, and prose that is let alone."""

from __future__ import annotations

import json
import time

import pytest
from fakes.manifests import LITERAL, faults_of, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hv15_batch.manifest import unmeant
from hv15_batch.manifest.unmeant import is_unmeant

pytestmark = pytest.mark.usefixtures("in_empty_folder")

OPTIONS = (
    "A cat --w 832 --h 480 --d 42",
    "A cat --n blurry, low quality --w 832 --h 480 --d 1 --l 7.5 --s 28",
    "A cat --s 20",
    "A cat --width=832 --height=480",
    "A cat --seed 5",
    "--w 832 --h 480 A cat",
    "A cat --ar 16:9 --v 6",
    "A cat --negative_prompt blurry",
    "A cat --video-size 720 1280 --infer-steps 50",
    "A cat \N{EM DASH}w 832 \N{EM DASH}h 480",
    "A cat -ar 16:9 -motion 2 -neg blurry",
    '"A cat" --w 832',
    '"A cat --w 832"',
    "A cat --i frames/first.png",
    "A cat --ci control.mp4",
)
MARKS = (
    "A cat <lora:fluffy:0.8> runs",
    "A __animal__ runs through __place/outdoor__",
    "A cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7",
)
PROSE = (
    "Scene #1: a cat wakes up",
    "#1 of the race crosses the line",
    "A cat -- old and grey -- sleeps in the sun",
    "A cat --old and grey-- sleeps in the sun",
    "A cat\N{EM DASH}old and grey\N{EM DASH}sleeps",
    "He said \N{EM DASH}I think so\N{EM DASH} and left",
    "He said --I think so-- and left",
    "A well--known actor walks in --no one notices",
    "--negative space fills the left half of the frame",
    "A low-motion 2 second shot of a sea-horse",
    "Temperature falls to -5 degrees, a lake freezes",
    'A poster reads "--w 832 <lora:x:1> __init__"',
    "A screen shows the word \N{LEFT DOUBLE QUOTATION MARK}--seed 5\N{RIGHT DOUBLE QUOTATION MARK}",
    "16:9 shot (at 10:30 in the morning) of a station",
    "A C++ book; a C# book // on a desk, $5 each, 50% off",
    "snake_case and __ and ___ painted on a wall",
    "[wide shot] A cat walks",
    "{a cat} on a mat",
    "A (very) small cat, style: noir, mood: calm",
    "3. Liga: a football match in the rain",
    "'Tis the season: snow falls",
    "prompt delivery of a parcel by a courier",
    "a prompt, quick reply",
    "Text appears on a wall",
    "BREAKING news on a screen",
    "<3 a heart made of flowers",
)


@pytest.mark.parametrize("prompt", OPTIONS)
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "json"])
def test_options_in_a_prompt_are_refused_in_every_format(prompt: str, suffix: str) -> None:
    cell = '"' + prompt.replace('"', '""') + '"'
    lines = {
        "txt": f"A dog\n{prompt}\n",
        "csv": f"prompt\n{cell}\n",
        "jsonl": '{"prompt": "A dog"}\n' + json.dumps({"prompt": prompt}),
        "json": '["A dog",\n' + json.dumps(prompt) + "]",
    }

    (fault,) = faults_of(f"p.{suffix}", lines[suffix])

    assert fault.startswith(f"p.{suffix}:2: ")
    assert "--n negative_prompt), or type manifest_literal=true if it is meant" in fault
    assert prompt in [
        row.prompt for row in read(f"p.{suffix}", lines[suffix], reading=LITERAL).rows
    ]


@pytest.mark.parametrize("prompt", MARKS)
def test_marks_that_only_another_tool_understands_are_refused(prompt: str) -> None:
    content = json.dumps([prompt])

    (fault,) = faults_of("p.json", content)

    assert fault.startswith("p.json:1: prompt=")
    assert "would be read as words; " in fault
    assert [row.prompt for row in read("p.json", content, reading=LITERAL).rows] == [prompt]


@pytest.mark.parametrize("prompt", PROSE)
def test_prose_is_neither_refused_nor_reported(prompt: str) -> None:
    manifest = read("p.txt", f"A dog\n{prompt}\n")

    assert [row.prompt for row in manifest.rows] == ["A dog", prompt]
    assert manifest.notes == ()
    assert not is_unmeant(prompt)


@pytest.mark.parametrize(
    "line",
    [
        "# scene 1",
        "#scene 1",
        "  # x",
        "// scene 1",
        "; scene",
        "<!-- x -->",
        "---",
        "=====",
        "```",
    ],
)
def test_comments_and_lines_that_separate_are_refused_in_text(line: str) -> None:
    content = f"A cat\n{line}\nA dog\n"

    (fault,) = faults_of("p.txt", content)

    assert fault.startswith("p.txt:2: line=")
    assert fault.endswith("; delete it, or type manifest_literal=true if it is meant as it stands.")
    assert len(read("p.txt", content, reading=LITERAL).rows) == 3


def test_a_hundred_comment_lines_are_one_message() -> None:
    (fault,) = faults_of("p.txt", "".join(f"# scene {n}\nA cat {n}\n" for n in range(100)))

    assert fault.startswith("p.txt:1: line=# scene 0: every line is a prompt, and this one is a ")
    assert fault.endswith(" (100 rows: lines 1, 3, 5, 7, 9 and 95 more).")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("prompt,seed\nA cat,1\n# scene 1,\n", 3),
        ("id,prompt,seed\na,A cat,1\n# scene 1\n", 3),
        ("# my prompts\nprompt,seed\nA cat,1\n", 1),
        ('prompt,seed\n"# scene 1, rain",\n', 2),
    ],
)
def test_a_comment_in_a_table_is_refused_as_one(content: str, line: int) -> None:
    (fault,) = faults_of("p.csv", content)

    assert fault.startswith(f"p.csv:{line}: line=")
    assert "a table has no comment lines, and here is one; delete it, or type manifest_l" in fault


def test_a_cell_that_begins_with_a_hash_is_a_prompt_and_is_reported() -> None:
    manifest = read("p.csv", "prompt,seed\n# one,1\n")
    single = read("p.csv", "prompt\n# one\nA cat\n")

    assert [row.prompt for row in single.rows] == ["# one", "A cat"]
    note = "Taken as typed: prompts that begin with #, like comments (1 row: line 2): # one"
    assert manifest.notes == single.notes == (note,)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"prompt": "A cat"}\n{"prompt": "A dog"}\n', "holds JSON Lines; rename it to .jsonl"),
        ('[{"prompt": "A cat"}]', "holds JSON; rename it to .json"),
        ('[\n  "A cat"\n]', "holds JSON; rename it to .json"),
        ('["A cat", "A dog"]', "holds JSON; rename it to .json"),
        ("prompt\nA cat\n", "the header of a table; delete it, or rename the file to .csv"),
        ("\n\ufeffCaption\nA cat\n", "the header of a table; delete it, or rename the file to .c"),
        ("id,prompt\na,A cat\n", "a table with a header; rename it to .csv"),
        ("prompt;style of it\nA cat;x\n", "a table with a header; rename it to .csv"),
        ("prompt\tseed\nA cat\t1\n", "a table with a header; rename it to .tsv"),
    ],
)
def test_a_text_that_is_another_format_is_refused_as_a_whole(content: str, kind: str) -> None:
    (fault,) = faults_of("p.txt", content)

    assert kind in fault
    assert read("p.txt", content, reading=LITERAL).rows


@pytest.mark.parametrize(
    "prompts",
    [
        ["1. A cat", "2. A dog", "3. A bird"],
        ["0) A cat", "1) A dog", "2) A bird"],
        ["- A cat", "- A dog", "* A bird"],
        ["\u2022 A cat", "\u2022 A dog", "\u2022 A bird"],
    ],
)
def test_a_whole_list_is_refused_once(prompts: list[str]) -> None:
    (fault,) = faults_of("p.txt", "\n".join(prompts))

    assert fault.startswith(f"p.txt:1: prompt={prompts[0]}: all prompts are items of a list, and ")
    assert len(read("p.txt", "\n".join(prompts), reading=LITERAL).rows) == 3


def test_prompts_that_only_in_part_look_like_a_list_are_taken_and_reported() -> None:
    manifest = read("p.txt", "1. A cat\n7. A dog\nA bird\n")

    assert len(manifest.rows) == 3
    assert manifest.notes == (
        "Taken as typed: prompts that begin with a number or a bullet, like items of a list "
        "(2 rows: lines 1, 2): 1. A cat",
    )
    assert read("p.txt", "3. Liga\nA dog\nA bird\n").notes == ()


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ('"A cat runs"', "wholly in quotation marks, which the model draws as lettering"),
        ("\u201cA cat runs\u201d", "wholly in quotation marks, which the model draws as lettering"),
        ('"A cat runs",', "in quotation marks with a comma at the end, like a list in code"),
        ("'A cat runs'", "wholly in quotation marks, which stay part of the text"),
        ("A (fluffy:1.3) cat", "with weights such as (word:1.3), which are read as text"),
        ("A ((fluffy)) cat", "with weights such as (word:1.3), which are read as text"),
        ("A cat BREAK a dog", "with BREAK, which is read as a word"),
        ("A {red|blue} cat", "with choices such as {red|blue}, which are read as text"),
        ("A cat, embedding:easy", "with embedding:name, which is read as text"),
        ("Prompt: A cat", "that begin with a label such as Prompt:"),
    ],
)
def test_what_may_be_meant_is_taken_and_told_in_a_line(prompt: str, what: str) -> None:
    content = f"A dog\n{prompt}\n{prompt}\nA bird\n"

    manifest = read("p.txt", content)

    assert manifest.rows[1].prompt == prompt
    (note,) = manifest.notes
    assert note.startswith(f"Taken as typed: prompts {what}")
    assert note.endswith(f" (2 rows: lines 2, 3): {prompt}")
    assert read("p.txt", content, reading=LITERAL).notes == ()


@pytest.mark.parametrize(
    "piece", ["\u201c", "(a ", "{|", "__a-", '"', "((", " --", "<lora:", "(a:1.", "{a|", " -", "*"]
)
def test_a_prompt_of_a_million_characters_is_looked_at_in_time(piece: str) -> None:
    prompt = (piece * 1_000_000)[:999_000] + " a cat"

    started = time.process_time()
    rows = read("p.json", json.dumps([prompt])).rows

    assert [row.prompt for row in rows] == [prompt]
    assert time.process_time() - started < 3


PIECES = [
    "a cat",
    " ",
    "\n",
    "-",
    "--w 8",
    "\u2014s 3",
    "1.",
    "*",
    "\u2022",
    "#",
    "//",
    "<lora:a:1>",
    "__b__",
    "Negative prompt:",
    "Steps: 4, S",
    "(",
    ":1.2)",
    "BREAK",
    "{",
    "|",
    "}",
    '"',
    "'",
    "\u201c",
    "\u201d",
    "\xab",
    "\xbb",
    ",",
    "embedding:x",
    "prompt",
    ":",
    "-ar 16",
]


@settings(
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from(PIECES),
        max_size=6,
    )
)
def test_a_prompt_without_marks_is_found_by_no_pattern(parts: list[str]) -> None:
    prompt = "".join(parts)
    if not unmeant.MARKS.search(prompt):
        assert unmeant.unmeant_rule(prompt) is None
        assert unmeant._ITEM.match(prompt) is None
        assert not any(finds(prompt) for finds in unmeant._NOTES.values())
