"""The whole message of each fault of a manifest."""

from __future__ import annotations

import json

import pytest
from fakes.manifests import (
    FRAMES,
    ID,
    KNOWN,
    LABEL,
    OTHERS,
    REAL,
    SEED_FORMS,
    SIDE,
    STEPS,
    TEXT,
    TWICE,
    UTF8,
    faults_of,
)

pytestmark = pytest.mark.usefixtures("in_empty_folder")

BAD_MANIFESTS: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "empty file": (
        "p.csv", "",
        ("p.csv:1: rows=0: a manifest has at least one row, and this one has none; "
         "write a prompt into it.",),
    ),
    "header only": (
        "p.csv", "\ufeffprompt,seed\n\n",
        ("p.csv:1: rows=0: a manifest has at least one row, and this one has none; "
         "write a prompt into it.",),
    ),
    "empty and blank prompts": (
        "p.csv", 'prompt,seed\n,1\n"  ",2\n',
        ("p.csv:2: prompt='': must not be empty; "
         "write what the clip shows, or delete the row.",
         "p.csv:3: prompt='  ': must not be empty; "
         "write what the clip shows, or delete the row."),
    ),
    "vertical bars": (
        "p.csv", "prompt|seed\na cat|1\n",
        ("p.csv:1: header=prompt|seed: cells are separated by commas, and here by vertical bars; "
         "save the file with commas.",),
    ),
    "Latin-1": (
        "p.csv", "prompt\na cat\ncafé\n".encode("latin-1"),
        ("p.csv:3: byte=0xe9: a manifest is UTF-8, and the byte at offset 16 is not: it seems to "
         f"be Windows-1252 (Latin-1); {UTF8}, or: iconv -f WINDOWS-1252 -t UTF-8 p.csv.",),
    ),
    "Latin-1 after a byte order mark": (
        "p.txt", b"\xef\xbb\xbfcaf\xe9\n",
        ("p.txt:1: byte=0xe9: a manifest is UTF-8, and the byte at offset 6 is not: it seems to be "
         f"Windows-1252 (Latin-1); {UTF8}, or: iconv -f WINDOWS-1252 -t UTF-8 p.txt.",),
    ),
    "UTF-16": (
        "p.csv", "prompt\na\n".encode("utf-16"),
        (f"p.csv:1: bytes=0xfffe: a manifest is UTF-8, and this file begins like UTF-16; {UTF8}.",),
    ),
    "NUL": (
        "p.csv", "prompt\na\0b\n",
        ("p.csv:2: byte=0x00: text holds no NUL, and the byte at offset 8 is one (a binary file, "
         f"or UTF-16); {UTF8}.",),
    ),
    "unclosed quote at the end": (
        "p.csv", 'prompt,seed\na,1\n"a cat,2\nb,3\n',
        ("p.csv:3: line=\"a cat,2: a quotation mark that opens a cell is closed, and here one is "
         f"not; close it, and {TWICE}.",),
    ),
    "unclosed quote before a quoted record": (
        "p.csv", 'prompt,seed\n"a cat,2\n"a dog",3\n',
        ("p.csv:2: line=\"a cat,2: a comma or the end of the line follows the quotation mark that "
         "closes a cell, and here something else does some lines further on; close the cell where "
         f"it ends, and {TWICE}.",),
    ),
    "single quotation marks inside a quoted cell": (
        "p.csv", 'prompt\nx\n"OPEN" says the sign\n',
        ("p.csv:3: line=\"OPEN\" says the sign: a comma or the end of the line follows the "
         "quotation mark that closes a cell, and here something else does; close the cell where "
         f"it ends, and {TWICE}.",),
    ),
    "CR line ends": (
        "p.csv", "prompt\ra cat\rb\r",
        ("p.csv:1: line='prompt\\ra cat\\rb': lines end with LF or CRLF, and a lone CR was found; "
         "save it with such line ends.",),
    ),
    "CR line ends in text": (
        "p.txt", "a\rb\r\n",
        ("p.txt:1: line='a\\rb': lines end with LF or CRLF, and a lone CR was found; "
         "save it with such line ends.",),
    ),
    "cell beyond the limit": (
        "p.csv", "prompt\n" + "a" * 1_000_001 + "\n",
        ("p.csv:2: line=" + "a" * 59 + "…: a cell has at most 1,000,000 characters, and here is "
         "one with more; shorten it, or close its quotation mark.",),
    ),
    "prompt beyond the limit in JSON": (
        "p.jsonl", json.dumps({"prompt": "a" * 1_000_001}),
        ("p.jsonl:1: prompt=" + "a" * 59 + "…: a cell holds at most 1,000,000 characters and this "
         "one has 1,000,001; shorten it.",),
    ),
    "ragged rows": (
        "p.csv", "prompt,seed\na cat, a dog,1\nb\nc,1\n",
        ("p.csv:2: line=a cat, a dog,1: a record has a cell for each column, and here are 3 for "
         "2; put a text with commas in quotation marks, without a space before them.",
         "p.csv:3: line=b: a record has a cell for each column, and here are 1 for 2; "
         "add the missing commas (an empty cell means the default)."),
    ),
    "text in a nameless column": (
        "p.csv", "prompt,\na cat, a dog\n",
        ("p.csv:2: line=a cat, a dog: a cell stands in a column with a name, and cell 2 does not; "
         "name the column in the header, or put a text with commas in quotation marks.",),
    ),
    "unknown columns": (
        "p.csv", "prompt,cat_of_mine_zzzz,frames,my style,cfg\na,1,2,3,4\n",
        ("p.csv:1: column=frames: a manifest has no such column, and the nearest known name is "
         f"num_frames; rename it, type manifest_columns.num_frames=frames, {LABEL}; {OTHERS}.",
         "p.csv:1: column=cfg: a manifest has no such column, and the nearest known name is "
         f"guidance_scale; rename it, type manifest_columns.guidance_scale=cfg, {LABEL}; {OTHERS}.",
         f"p.csv:1: columns=cat_of_mine_zzzz, my style: a manifest has none of these 2, and {KNOWN}"
         "; correct or remove them, or begin them with tag_ if they are labels of your own; "
         f"{OTHERS}."),
    ),
    "prompt column of another tool": (
        "p.csv", "Video Caption,seed\na,x\n",
        ("p.csv:1: column=Video Caption: a manifest has no such column, and the nearest known name "
         f"is prompt; rename it, type 'manifest_columns.prompt=Video Caption', {LABEL}; "
         f"{OTHERS}.",),
    ),
    "misspelt prompt column": (
        "p.csv", "promt,seed\na,x\n",
        ("p.csv:1: column=promt: a manifest has no such column, and the nearest known name is "
         f"prompt; rename it, type manifest_columns.prompt=promt, {LABEL}; {OTHERS}.",),
    ),
    "no prompt column": (
        "p.csv", "id,seed\na,1\n",
        ("p.csv:1: header=id,seed: a manifest has a column prompt, and this one has none; "
         "name the columns in the first line.",),
    ),
    "column named twice": (
        "p.csv", "prompt,seed,seed\na,1,2\n",
        ("p.csv:1: column=seed: a name belongs to one column, and 2 and 3 share it; "
         "rename or remove one.",),
    ),
    "header of commas": (
        "p.csv", "," * 1_000_000 + "\n",
        ("p.csv:1: header='': a manifest has at most 1,000 columns, and this one has 1,000,001; "
         "remove some.",),
    ),
    "label that cannot be printed": (
        "p.jsonl", '{"prompt": "a", "tag_\\ud800": "x"}',
        (f"p.jsonl:1: column='tag_\\ud800': a manifest has no such column, and {KNOWN}; correct or "
         f"remove it, {LABEL}; {OTHERS}.",),
    ),
    "too many columns": (
        "p.csv", "prompt" + ",tag_a" * 1000 + "\n",
        ("p.csv:1: header=prompt: a manifest has at most 1,000 columns, and this one has 1,001; "
         "remove some.",),
    ),
    "sizes": (
        "p.csv", "prompt,height,width\na,490,848\nb,-480,0\nc,480,x\n",
        ("p.csv:2: height=490: must be a multiple of 16; nearest are 480 and 496.",
         "p.csv:3: height=-480: must be a multiple of 16; the smallest is 16.",
         "p.csv:3: width=0: must be a multiple of 16; the smallest is 16.",
         f"p.csv:4: width=x: {SIDE}."),
    ),
    "frames and steps": (
        "p.csv", "prompt,num_frames,num_inference_steps\na,120,50\nb,121.5,0\nc,nan,1e3\n",
        ("p.csv:2: num_frames=120: must be 4n+1; nearest are 117 and 121.",
         f"p.csv:3: num_frames=121.5: {FRAMES}.",
         "p.csv:3: num_inference_steps=0: must be 1 to 1000; 50 is usual, 8 or 12 for "
         "step-distilled models.",
         f"p.csv:4: num_frames=nan: {FRAMES}.",
         f"p.csv:4: num_inference_steps=1e3: {STEPS}."),
    ),
    "numbers": (
        "p.csv", 'prompt,guidance_scale,flow_shift,fps\na,nan,inf,-inf\nb,"6,5",six,1e999\n',
        (f"p.csv:2: guidance_scale=nan: {REAL}.",
         f"p.csv:2: flow_shift=inf: {REAL}.",
         f"p.csv:2: fps=-inf: {REAL}.",
         f"p.csv:3: guidance_scale=6,5: {REAL}.",
         f"p.csv:3: flow_shift=six: {REAL}.",
         f"p.csv:3: fps=1e999: {REAL}."),
    ),
    "numbers out of range": (
        "p.csv", "prompt,guidance_scale,flow_shift,fps\na,0.5,0,0\n",
        ("p.csv:2: guidance_scale=0.5: must be 1 (no guidance) to 100; 6 is usual.",
         "p.csv:2: flow_shift=0: must be over 0 and at most 100; 5 to 9 is usual.",
         "p.csv:2: fps=0: must be 1 to 240; the model was trained at 24."),
    ),
    "seed": (
        "p.csv", "prompt,seed\na,-1\nb,0..99999999999\n",
        (f"p.csv:2: seed=-1: seeds are integers from 0 to 2^63-1, and -1 is not one; {SEED_FORMS}.",
         "p.csv:3: seed=0..99999999999: a row has at most 10,000 seeds, and this one has "
         "100,000,000,000; use fewer, or several rows."),
    ),
    "too many clips": (
        "p.csv", "prompt,seed\n" + "a,0..9999\n" * 102,
        ("p.csv:102: seed=0..9999: a manifest makes at most 1,000,000 clips, and this one makes "
         "more; split it into several.",),
    ),
    "ids": (
        "p.csv", f"prompt,id\na,a b\nb,../x\nc,.hidden\nd,..\ne,{'x' * 65}\nf,猫\n",
        (f"p.csv:2: id=a b: {ID}.",
         f"p.csv:3: id=../x: {ID}.",
         "p.csv:4: id=.hidden: an id must not begin with a full stop, as temporary files do; "
         "remove it.",
         "p.csv:5: id=..: an id must not begin with a full stop, as temporary files do; "
         "remove it.",
         f"p.csv:6: id={'x' * 59}…: {ID}.",
         f"p.csv:7: id=猫: {ID}."),
    ),
    "duplicate ids": (
        "p.csv", "prompt,id\na,cat\nb,Cat\nc,cat\n",
        ("p.csv:3: id=Cat: an id is unique, and line 2 has cat, which a disk may take for the "
         "same name, already; change one of the two.",
         "p.csv:4: id=cat: an id is unique, and line 2 has it already; change one of the two."),
    ),
    "broken JSON line": (
        "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n{"prompt": }\n{"prompt": "c"}\n',
        ("p.jsonl:2: line={\"prompt\": \"b\": a line is one JSON object, and this one breaks at "
         "character 15 (Expecting ',' delimiter); correct it.",
         "p.jsonl:3: line={\"prompt\": }: a line is one JSON object, and this one breaks at "
         "character 12 (Expecting value); correct it."),
    ),
    "JSON list": (
        "p.jsonl", '[\n{"prompt": "a"}\n]\n',
        ("p.jsonl:1: line=[: JSON Lines has one object on each line, and this file is a JSON "
         "array; rename it to .json, or write one object on each line, without the list and the "
         "commas around them.",),
    ),
    "JSON lists on later lines": (
        "p.jsonl", '{"prompt": "a"}\n[1]\n[\n{"prompt": 7}\n',
        ('p.jsonl:2: line=[1]: a line is one JSON object, such as {"prompt": "a cat"}, and here is '
         "something else; write one object on each line, without a list around them.",
         "p.jsonl:3: line=[: a line is one JSON object, and this one breaks at character 2 "
         "(Expecting value); correct it.",
         f"p.jsonl:4: prompt=7: {TEXT}."),
    ),
    "JSON line without an object": (
        "p.jsonl", '"a cat"\n',
        ('p.jsonl:1: line="a cat": a line is one JSON object, such as {"prompt": "a cat"}, and '
         "here is something else; write one object on each line, without a list around them.",),
    ),
    "JSON name twice": (
        "p.jsonl", '{"prompt": "a", "seed": 1, "seed": 2}\n',
        ('p.jsonl:1: line={"prompt": "a", "seed": 1, "seed": 2}: a name stands once in an object, '
         "and seed stands twice; remove one.",),
    ),
    "JSON NaN": (
        "p.jsonl", '{"prompt": "a", "fps": NaN}\n',
        ('p.jsonl:1: line={"prompt": "a", "fps": NaN}: numbers are finite, and NaN is not; '
         "write null for the default.",),
    ),
    "JSON nested deeply": (
        "p.jsonl", '{"prompt":' + "[" * 200_000 + "\n",
        ('p.jsonl:1: line={"prompt":' + "[" * 49 + "…: a line is one JSON object, and this one is "
         "nested too deeply; write plain values.",),
    ),
    "JSON integer of many digits": (
        "p.jsonl", '{"prompt": "a", "seed": ' + "1" * 5000 + "}\n",
        ('p.jsonl:1: line={"prompt": "a", "seed": ' + "1" * 35 + "…: an integer has at most 100 "
         "digits, and here is one of 5,000; put it in quotation marks if it is text.",),
    ),
    "JSON types": (
        "p.jsonl",
        '{"prompt": 7, "num_frames": true, "fps": false, "tag_a": [1], "id": 1.5}\n'
        '{"prompt": "\\ud800", "seed": true, "negative_prompt": "a\\u0000b", "tag_b": {}}\n',
        (f"p.jsonl:1: prompt=7: {TEXT}.",
         f"p.jsonl:1: id=1.5: {ID}.",
         f"p.jsonl:1: num_frames=true: {FRAMES}.",
         f"p.jsonl:1: fps=false: {REAL}.",
         "p.jsonl:1: tag_a=[1]: a label is a single value; write it as text.",
         "p.jsonl:2: prompt='\\ud800': text must be valid Unicode, and character 1 is half of a "
         "surrogate pair; write the character itself.",
         "p.jsonl:2: negative_prompt='a\\x00b': text holds no NUL characters; remove them.",
         f"p.jsonl:2: seed=true: seeds are integers from 0 to 2^63-1, and true is not one; "
         f"{SEED_FORMS}.",
         "p.jsonl:2: tag_b={}: a label is a single value; write it as text."),
    ),
    "JSON unknown column is told once": (
        "p.jsonl", '{"prompt": "a", "steps_": 1}\n' * 3,
        ("p.jsonl:1: column=steps_: a manifest has no such column, and the nearest known name is "
         "num_inference_steps; rename it, type manifest_columns.num_inference_steps=steps_, "
         f"{LABEL}; {OTHERS}.",),
    ),
    "JSON without a prompt": (
        "p.jsonl", '{"seed": 1}\n{"prompt": null}\n{"prompt": null, "seed": 2}\n',
        ("p.jsonl:1: prompt='': must not be empty; "
         "write what the clip shows, or delete the row.",
         "p.jsonl:3: prompt='': must not be empty; "
         "write what the clip shows, or delete the row."),
    ),
    "broken Parquet": (
        "p.parquet", b"prompt\na cat\n",
        ("p.parquet:1: file=p.parquet: a whole Parquet file can be read, and this one breaks after "
         "row 0 (Parquet magic bytes not found in footer. Either the file is corrupted or this is "
         "not a parquet file); write it again.",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_its_whole_message(case: str) -> None:
    name, content, faults = BAD_MANIFESTS[case]

    assert faults_of(name, content) == faults


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_every_fault_says_place_value_rule_and_action_on_one_printable_line(case: str) -> None:
    name, content, _ = BAD_MANIFESTS[case]

    for fault in faults_of(name, content):
        place, _, rest = fault.partition(": ")
        assert place.rsplit(":", 1)[0] == name
        assert place.rsplit(":", 1)[1].isdigit()
        assert "=" in rest
        assert "; " in rest
        assert fault.endswith(".")
        assert fault.isprintable()
        fault.encode()


def test_all_faults_are_told_at_once_in_file_order() -> None:
    content = "prompt,seed,num_frames\n,x,120\na,1,121\nb,1,1.5\n"

    assert [fault.split("=")[0] for fault in faults_of("p.csv", content)] == [
        "p.csv:2: prompt",
        "p.csv:2: seed",
        "p.csv:2: num_frames",
        "p.csv:4: num_frames",
    ]


def test_rows_before_a_broken_quote_are_checked_too() -> None:
    assert [fault.split("=")[0] for fault in faults_of("p.csv", 'prompt,seed\na,x\n"b')] == [
        "p.csv:2: seed",
        "p.csv:3: line",
    ]
