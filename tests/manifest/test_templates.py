"""Templates: choices, weights, files of words, and how many prompts they may make."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fakes.command import tiny_model
from fakes.manifests import faults_of, read, write

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.columns import Reading, reading_of
from hv15_batch.manifest.frame import frame_content
from hv15_batch.manifest.read import Manifest, scan_manifest
from hv15_batch.manifest.templates.asked import Templates, templates_of
from hv15_batch.manifest.templates.expand import shown_prompts, templates_line
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")

ALL = Reading(templates=Templates(None))
NO_WEIGHT = (
    "is no weight: one is a number such as 3 or 1.5, of at most 9 digits, at the very start of its "
    r"option; for the text write \: for each colon"
)
CHOICES = "write choices like {red|blue}, 3::red for a weight, {@colours.txt} for a file"
LITERAL = r"and a brace of the text as \{ or \}"
FILE = "name a .txt file beside the manifest or below it, like {@colours.txt}"
SPACE = rf"a space stands before @; {FILE}, or write \@ for the character"


def clips_of(manifest: Manifest) -> tuple[Clip, ...]:
    return make_clips(manifest, replace(Config(), model=tiny_model("tiny_t2v")), None)


def drawing(draws: int, seed: int = 0, **settings: int | bool) -> Reading:
    return Reading(templates=Templates(draws, seed, **settings))


def prompts_of(template: str, reading: Reading = ALL) -> list[str]:
    return [row.prompt for row in read("p.txt", f"{template}\n", reading=reading).rows]


def test_three_by_four_choices_are_twelve_prompts_in_the_order_of_reading() -> None:
    found = prompts_of("A {red|green|blue} {fox|cat|owl|hare} runs.")
    colours, animals = ("red", "green", "blue"), ("fox", "cat", "owl", "hare")
    assert found == [f"A {c} {a} runs." for c, a in itertools.product(colours, animals)]


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("A fox{, at {dawn|dusk}|}.", ["A fox, at dawn.", "A fox, at dusk.", "A fox."]),
        ("{a|{b|{c|d}}}", ["a", "b", "c", "d"]),
        ("{3::red|0.5::blue} sky", ["red sky", "blue sky"]),
        ("{a|a|b}", ["a", "b"]),
        ('A sign reads "{OPEN|CLOSED}".', ['A sign reads "OPEN".', 'A sign reads "CLOSED".']),
        (r"{a\|b|\{c\}|3\::d|\@e}", ["a|b", "{c}", "3::d", "@e"]),
        (r"a | b \{c\} C:\new \\", [r"a | b {c} C:\new " + "\\"]),
        ("{ a |b}x", [" a x", "bx"]),
        ("50:: red", ["50:: red"]),
        (r"{2024: red|a::b|-1\:\: c| \@d}", ["2024: red", "a::b", "-1:: c", " @d"]),
    ],
)
def test_choices_nest_have_weights_and_can_be_written_as_text(
    template: str, prompts: list[str]
) -> None:
    assert prompts_of(template) == prompts


def test_without_templates_braces_are_text_and_a_line_says_so() -> None:
    manifest = read("p.txt", "A {red|blue} \\{fox\\}\n")
    assert [row.prompt for row in manifest.rows] == ["A {red|blue} \\{fox\\}"]
    assert "read as text without templates=all" in manifest.notes[0]
    assert not read("q.txt", "A {red|blue} fox\n", reading=ALL).notes


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("A {red", f"character 3 opens a choice that never ends; {CHOICES}, {LITERAL}"),
        ("A red}", f"character 6 closes a choice that was never opened; {CHOICES}, {LITERAL}"),
        ("A {red}", f"character 3 opens a choice with one option only; {CHOICES}, {LITERAL}"),
        ("A {}", f"character 3 opens a choice with one option only; {CHOICES}, {LITERAL}"),
        ("A {0::red|blue}", "a weight is over 0; leave that option out, or write 1::"),
        ("A {-1::red|blue}", f"-1:: {NO_WEIGHT}"),
        ("A {red| 2::blue}", f"2:: {NO_WEIGHT}"),
        ("A {1e3::red|blue}", f"1e3:: {NO_WEIGHT}"),
        ("A {1234567890::red|blue}", f"1234567890:: {NO_WEIGHT}"),
        ("A { @colours.txt}", SPACE),
        (
            "A {2:: @colours.txt|b}",
            SPACE,
        ),
        ("{a|" * 17 + "b" + "}" * 17, "choices are nested at most 16 deep; write them flatter"),
        ("{|a}", "one of the prompts of this template is empty; write what that clip shows"),
        ("{@}", f"nothing is no name of a file of words; {FILE}"),
        ("{@/etc/hosts.txt}", f"/etc/hosts.txt is no name of a file of words; {FILE}"),
        ("{@../a.txt}", f"../a.txt is no name of a file of words; {FILE}"),
        ("{@b/../a.txt}", f"b/../a.txt is no name of a file of words; {FILE}"),
        ("{@.env}", f".env is no name of a file of words; {FILE}"),
        ("{@{a|b}.txt}", f"the name of a file of words has no choices in it; {FILE}"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(template: str, rule: str) -> None:
    (fault,) = faults_of("p.txt", f"plain\n{template}\n", reading=ALL)
    assert fault.startswith("p.txt:2: prompt=")
    assert fault.endswith(f": {rule}.")


def test_a_row_s_other_faults_are_told_once_and_not_for_each_prompt() -> None:
    (fault,) = faults_of("p.csv", "prompt,num_frames\n{a|b|c} d,120\n", reading=ALL)
    assert fault.startswith("p.csv:2: num_frames=120")


def test_what_a_choice_puts_into_a_prompt_is_checked_as_a_prompt_is() -> None:
    write("o.txt", "big\nA cat --w 832\n")
    (fault,) = faults_of("p.csv", "prompt\n{@o.txt} sky\n", reading=ALL)
    assert fault.startswith("p.csv:2: prompt=A cat --w 832 sky: a prompt is text")


# -- ids --------------------------------------------------------------------------------------


def test_each_prompt_s_row_has_the_id_of_its_row_and_six_digits_of_its_prompt() -> None:
    rows = read("p.csv", "id,prompt\nfox,A {red|blue} fox\nowl,An owl\n", reading=ALL).rows
    assert [row.id for row in rows] == ["fox-86cc9e", "fox-fc3795", "owl"]
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.template_id for row in rows] == ["fox", "fox", None]
    assert [row.template_draw for row in rows] == [0, 1, None]


def test_a_row_without_an_id_is_named_after_its_template() -> None:
    (plain,) = read("p.txt", "A {red|blue} fox\n").rows
    made = read("p.txt", "A {red|blue} fox\n", reading=ALL).rows
    assert [row.id.rpartition("-")[0] for row in made] == [plain.id, plain.id]


def test_an_id_leaves_room_for_the_digits() -> None:
    text = f"id,prompt\n{'a' * 58},A {{red|blue}} fox\n"
    assert "has at most 57 characters" in faults_of("p.csv", text, reading=ALL)[0]
    assert read("p.csv", text).rows[0].id == "a" * 58


def test_one_id_for_two_templates_is_refused() -> None:
    text = "id,prompt\nfox,A {red|blue} fox\nfox,A {red|blue} owl\n"
    (fault,) = faults_of("p.csv", text, reading=ALL)
    assert fault.startswith("p.csv:3: id=fox: an id is unique, and line 2 has it already")


def test_prompts_of_one_template_may_share_six_digits() -> None:
    seen: dict[str, int] = {}
    for number in range(20_000):
        digits = hashlib.sha256(f"Shot {number}".encode()).hexdigest()[:6]
        if seen.setdefault(digits, number) != number:
            break
    text = f"id,prompt\nshot,Shot {{{seen[digits]}|{number}}}\n"
    clips = clips_of(read("p.csv", text, reading=ALL))
    assert len({clip.row_id for clip in clips}) == 1
    assert len({clip.clip_id for clip in clips}) == 2


# -- draws ------------------------------------------------------------------------------------


def test_draws_are_the_same_on_every_machine_and_in_every_place() -> None:
    """The texts are pinned: a change would render other clips in every run directory."""
    template = "A {red|green|blue} {fox|cat|owl|hare} {runs|sleeps}."
    found = prompts_of(template, drawing(4))
    assert found == [
        "A green hare sleeps.",
        "A red hare runs.",
        "A red fox runs.",
        "A blue fox sleeps.",
    ]
    assert prompts_of(f"first\n{template}", drawing(4))[1:] == found
    assert prompts_of(template, drawing(6))[:4] == found
    assert prompts_of(template, drawing(4, seed=1)) != found


def test_equal_draws_are_one_row_with_the_number_of_the_first() -> None:
    rows = read("p.txt", "A {red|blue} fox\n", reading=drawing(1000)).rows
    assert sorted(row.prompt for row in rows) == ["A blue fox", "A red fox"]
    assert rows[0].template_draw == 0
    assert rows[1].template_draw in range(1, 30)


def test_weights_decide_how_often_an_option_is_drawn() -> None:
    template = "{3::a|b} " + " ".join("{0|1|2|3|4|5|6|7|8|9}" for _ in range(6))
    counts = Counter(prompt[0] for prompt in prompts_of(template, drawing(2000)))
    assert 1420 <= counts["a"] <= 1580  # 1,500 and four standard deviations


def test_the_words_of_a_file_count_for_a_draw() -> None:
    template = "{@w.txt} " + "{a|b}" * 40
    write("w.txt", "red\n")
    before = prompts_of(template, drawing(3))
    write("w.txt", "red \n")
    assert prompts_of(template, drawing(3)) != before


# -- files of words ---------------------------------------------------------------------------


def test_a_file_of_words_is_a_choice_between_its_lines() -> None:
    Path("words").mkdir()
    write(
        "words/animals.txt",
        "\N{BYTE ORDER MARK}fox\r\n\r\n  snow owl \r\n# none of these\r\n{a|b}\r\n",
    )
    found = prompts_of("A {@words/animals.txt} runs.")
    assert found == ["A fox runs.", "A snow owl runs.", "A {a|b} runs."]
    assert prompts_of("A {tall {@words/animals.txt}|man}.")[-2:] == ["A tall {a|b}.", "A man."]
    assert prompts_of("A {man|@words/animals.txt}.")[:2] == ["A man.", "A fox."]


def test_files_of_words_are_small_regular_files_that_no_link_leads_to() -> None:
    Path("real").mkdir()
    write("real/a.txt", "fox\n")
    os.symlink("real/a.txt", "linked.txt")
    os.symlink("a.txt", "real/linked.txt")
    os.symlink("real", "folder")
    os.mkfifo("pipe.txt")
    Path("dir.txt").mkdir()
    write("large.txt", b"a\n" * 2**19 + b"b")
    write("latin.txt", "caf\xe9\n".encode("latin-1"))
    write("empty.txt", "\n# nothing\n")
    reasons = {
        "linked.txt": "cannot be read (is a link)",
        "real/linked.txt": "cannot be read (is a link)",
        "folder/a.txt": "a folder in its path is none, or is a link",
        "pipe.txt": "is a pipe",
        "dir.txt": "is a folder",
        "large.txt": "more than 1 MiB",
        "latin.txt": "is no UTF-8",
        "empty.txt": "has no words",
        "missing.txt": "No such file",
    }
    for name, reason in reasons.items():
        (fault,) = faults_of("p.txt", f"A {{@{name}}}\n", reading=ALL)
        assert fault.startswith("p.txt:1: prompt=")
        assert f"{name} " in fault
        assert reason in fault
        assert "of the run" not in fault
        assert "no link leads to" in fault or name in ("latin.txt", "empty.txt")


def test_the_folder_of_the_manifest_may_be_a_link() -> None:
    Path("real").mkdir()
    write("real/a.txt", "fox\n")
    write("real/p.txt", "A {@a.txt}\n")
    os.symlink("real", "folder")
    manifest, faults = scan_manifest(Path("folder/p.txt"), Task.t2v, ALL)
    assert not faults
    assert [row.prompt for row in manifest.rows] == ["A fox"]
    assert manifest.words == (("a.txt", b"fox\n"),)


def test_rows_of_a_frame_have_choices_and_no_files() -> None:
    content = frame_content(pd.DataFrame({"prompt": ["A {red|blue} fox"]}), ALL)
    manifest, _ = scan_manifest(Path("rows.jsonl"), Task.t2v, ALL, content)
    assert len(manifest.rows) == 2
    content = frame_content(pd.DataFrame({"prompt": ["A {@a.txt} fox"]}), ALL)
    _, faults = scan_manifest(Path("rows.jsonl"), Task.t2v, ALL, content)
    assert "rows of a DataFrame name no files of words" in faults.messages[0]


def test_a_file_of_words_is_not_called_like_the_copy_of_the_manifest() -> None:
    write("manifest.txt", "fox\n")
    (fault,) = faults_of("p.txt", "A {@manifest.txt}\n", reading=ALL)
    assert "manifest.txt is how a run names its copy of the manifest; rename the file" in fault
    assert read("p.csv", "prompt\nA {@manifest.txt}\n", reading=ALL).rows[0].prompt == "A fox"


# -- how many ---------------------------------------------------------------------------------

TENS = "{0|1|2|3|4|5|6|7|8|9}"


def test_more_than_ten_thousand_clips_are_refused_before_they_are_made() -> None:
    assert len(prompts_of(TENS * 4)) == 10_000
    for template, seeds, found in (
        (TENS * 4 + "{a|b}", "", "20,000"),
        (TENS * 4, "0..1", "20,000"),
        (TENS * 2000, "", "very many"),
    ):
        (fault,) = faults_of("p.csv", f"prompt,seed\n{template},{seeds}\n", reading=ALL)
        rule = f"at most 10,000 clips without limit, and up to here they make {found}; use"
        assert rule in fault
        assert "templates=N, or type limit=N" in fault


def test_the_cap_counts_all_templates_their_seeds_and_those_of_the_command() -> None:
    text = f"prompt\n{TENS * 3}\n{TENS * 3}a\nplain\n"
    assert len(read("p.csv", text, reading=ALL).rows) == 2001
    for settings in ({"own_seeds": 6}, {"default_seeds": 6}):
        reading = Reading(templates=Templates(None, **settings))
        (fault,) = faults_of("p.csv", text, reading=reading)
        assert fault.startswith("p.csv:3: ")
        assert "12,000" in fault


def test_with_limit_a_manifest_s_own_limits_hold() -> None:
    reading = Reading(templates=Templates(None, has_limit=True))
    assert len(prompts_of(TENS * 4 + "{a|b}", reading)) == 20_000
    (fault,) = faults_of("p.csv", f"prompt\n{TENS * 7}\n", reading=reading)
    assert "templates make at most 1,000,000 clips, and up to here they make 10,000,000" in fault
    assert "limit=N" not in fault


def test_long_prompts_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hv15_batch.manifest.templates.expand.MAX_CHARACTERS", 1000)
    (fault,) = faults_of("p.csv", f"prompt\n{'a' * 100}{TENS * 2}\n", reading=ALL)
    assert "templates make at most 1,000 characters of prompts; use fewer choices." in fault


@pytest.mark.parametrize("template", ["{a|b}", "{", r"\{", "{a|{b|c}}", "|b", "}"])
def test_a_hundred_thousand_braces_take_no_more_than_a_moment(template: str) -> None:
    start = time.process_time()
    with pytest.raises(ManifestError):
        read("p.csv", f"prompt\n{{a{template * 100_000}\n", reading=ALL)
    assert time.process_time() - start < 10


# -- settings ---------------------------------------------------------------------------------


def test_the_settings_say_whether_and_how_often() -> None:
    config = Config()
    assert templates_of(config) is None
    assert templates_of(replace(config, templates="all")) == Templates(None)
    config = replace(config, templates="12", templates_seed=7, limit=5)
    config.sampling.seeds, config.override.seeds = "0..3", [1, 2]
    found = Templates(12, 7, True, own_seeds=2, default_seeds=4)
    assert reading_of(config).templates == found


@pytest.mark.parametrize("typed", ["0", "-1", "1.5", "some", "1000001", ""])
def test_other_values_are_refused(typed: str) -> None:
    with pytest.raises(Refused, match=r"templates=.*must be all, or how many prompts to draw"):
        templates_of(replace(Config(), templates=typed))


def test_the_dry_run_shows_ten_prompts_and_counts_the_others() -> None:
    manifest = read(
        "p.csv", f"id,prompt,seed\nshot,Shot {TENS}{{a|b}},0 1\nplain,A fox,\n", reading=ALL
    )
    assert (
        templates_line(manifest.rows, "all") == "Templates: 1 row makes 20 prompts (templates=all)"
    )
    clips = clips_of(manifest)
    lines = list(shown_prompts(clips))
    assert len(clips) == 41
    assert len(lines) == 11
    assert lines[0] == f"  {manifest.rows[0].id}: Shot 0a"
    assert lines[-1] == "  and 10 more prompts, all of them in plan.csv"
    assert templates_line(read("q.txt", "A fox\n", reading=ALL).rows, "all") is None
