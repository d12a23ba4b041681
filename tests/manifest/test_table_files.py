"""CSV and its relatives as spreadsheets, shells and pandas write them."""

from __future__ import annotations

import csv
import io

import pytest
from fakes.manifests import LITERAL, faults_of, read

pytestmark = pytest.mark.usefixtures("in_empty_folder")

PROMPT = 'A sign; it says "OPEN", and \t on it'


def table(separator: str, end: str = "\r\n") -> str:
    out = io.StringIO()
    rows = [["id", "prompt", "seed"], ["a", PROMPT, "1"], ["b", "A dog", ""]]
    csv.writer(out, delimiter=separator, lineterminator=end).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.CSV"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\r\n\r\n"])
def test_a_table_is_read_by_the_separator_of_its_header(
    name: str, separator: str, before: str
) -> None:
    rows = read(name, before + table(separator)).rows

    assert [(row.id, row.prompt) for row in rows] == [("a", PROMPT), ("b", "A dog")]
    assert rows[0].seeds == (1,)
    assert rows[0].line == 2 + before.count("\r\n")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_first_line_by_which_excel_is_told_the_separator_is_obeyed(separator: str) -> None:
    for first in (f"sep={separator}\r\n", f'"sep={separator}"\r\n', f"\ufeffSEP={separator}\n"):
        rows = read("p.csv", first + table(separator)).rows

        assert [row.prompt for row in rows] == [PROMPT, "A dog"]
        assert [row.line for row in rows] == [3, 4]


def test_the_type_line_of_powershell_is_skipped() -> None:
    content = (
        '#TYPE System.Management.Automation.PSCustomObject\r\n"prompt","seed"\r\n"A cat","1"\r\n'
    )

    (row,) = read("p.csv", content).rows

    assert (row.line, row.prompt, row.seeds) == (3, "A cat", (1,))


def test_semicolons_and_commas_in_texts_do_not_mislead() -> None:
    assert read("p.csv", "prompt\nA cat; a dog\n").rows[0].prompt == "A cat; a dog"
    assert read("p.csv", 'prompt;"negative prompt"\nA cat, a dog;dark, dim\n').rows[0].prompt
    (fault,) = faults_of("p.csv", "prompt;seed\nA cat;a dog;1\n")
    assert "here are 3 for 2; put a text with semicolons in quotation marks" in fault
    (fault,) = faults_of("p.tsv", "prompt\tseed\nA cat\n")
    assert "here are 1 for 2; add the missing tabs (an empty cell means the default)" in fault


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_of_separators_and_blank_lines_are_skipped(end: str) -> None:
    lines = ["prompt,seed,", "", "A cat,1,", ",,", " , ,", ",,,,,,", "A dog,2,,,,", "", "", ""]

    rows = read("p.csv", end.join(lines)).rows

    assert [(row.line, row.prompt) for row in rows] == [(3, "A cat"), (7, "A dog")]


def test_a_table_of_separators_alone_has_no_rows() -> None:
    (fault,) = faults_of("p.csv", "prompt,seed\n,\n,\n")

    assert ": rows=0: a manifest has at least one row, and this one has none" in fault


def test_a_decimal_comma_is_told() -> None:
    (fault,) = faults_of("p.csv", "prompt;guidance_scale\nA cat;6,5\n")

    assert "guidance_scale=6,5: must be a finite number; write it like 6 or 5.5." in fault


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('prompt\tseed\nA cat\t1\n"A dog\t2\nA bird\t3\n', 3),
        ('prompt;seed\n"A cat";1\n"A ""dog;2\n', 3),
        ('sep=;\nprompt;seed\n"A cat;1\n', 3),
    ],
)
def test_an_open_quotation_mark_is_told_with_the_line_where_it_opens(
    content: str, line: int
) -> None:
    (fault,) = faults_of("p.csv", content)

    assert fault.startswith(f"p.csv:{line}: line=")
    assert "a quotation mark that opens a cell is closed, and here one is not" in fault


ENCODED = {
    "cp1252": ("Ein M\u00e4dchen l\u00e4uft \u2013 schnell", "Windows-1252 (Latin-1)"),
    "mac_roman": ("Ein M\u00e4dchen l\u00e4uft", "Mac Roman"),
    "cp1251": (
        "\u041a\u043e\u0448\u043a\u0430 \u0438\u0434\u0451\u0442",
        "Windows-1251 (Cyrillic)",
    ),
    "gb2312": ("\u4e00\u53ea\u732b\u5728\u96e8\u4e2d\u884c\u8d70", "GBK (Chinese)"),
    "big5": ("\u4e00\u96bb\u8c93\u5728\u96e8\u4e2d\u884c\u8d70", "Big5 (Chinese)"),
    "cp932": (
        "\u96e8\u306e\u4e2d\u3092\u6b69\u304f\u732b\u3068\u72ac",
        "Shift-JIS (Japanese)",
    ),
    "euc_kr": (
        "\ub208 \uc18d\uc744 \ub2ec\ub9ac\ub294 \uace0\uc591\uc774",
        "EUC-KR (Korean)",
    ),
    "utf-16-le": ("A cat runs", "UTF-16"),
    "utf-16-be": ("A cat runs", "UTF-16"),
}


@pytest.mark.parametrize("codec", ENCODED)
@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl", "json"])
def test_another_encoding_is_refused_by_its_name(codec: str, suffix: str) -> None:
    text, name = ENCODED[codec]
    content = {"csv": f"prompt\n{text}\n", "txt": f"{text}\n"}.get(suffix, f'["{text}"]')

    (fault,) = faults_of(f"p.{suffix}", content.encode(codec))

    assert f"it seems to be {name}" in fault
    assert 'save it as UTF-8 (in a spreadsheet: "CSV UTF-8")' in fault


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PK\x03\x04abc", "a ZIP file (a spreadsheet such as .xlsx is one)"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (b"PAR1abc", "a Parquet file"),
        (b"%PDF-1.7\n", "a PDF"),
    ],
)
def test_a_file_of_another_kind_under_the_name_of_a_text_is_named(data: bytes, kind: str) -> None:
    for name in ("p.csv", "p.txt", "p.json", "p.jsonl", "p.tsv"):
        (fault,) = faults_of(name, data)
        assert f"a text file is text, and this one begins like {kind}; " in fault


def test_literal_takes_a_comment_for_a_prompt_in_a_table_too() -> None:
    rows = read("p.csv", "prompt,seed\n# one,\n", reading=LITERAL).rows

    assert [row.prompt for row in rows] == ["# one"]
