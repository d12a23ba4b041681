"""Hypothesis strategies: manifests as users and machines write them, and command lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from hv15_batch.config.files import MANIFEST_SUFFIXES
from hv15_batch.config.words import GROUPS, setting_names
from hv15_batch.manifest.columns import KNOWN_COLUMNS

Manifest = tuple[str, bytes]
"""A file's name and its content."""

# -- cells ------------------------------------------------------------------------------------

ODD_TEXTS = (
    *("", " ", "NA", "null", "nan", "inf", "-0", "1e5", "0x10", "1_000", "٣", "²", "NaN", "True"),
    *("7", "1 2 5", "1,2,5", "0..3", "3..0", "0..9223372036854775807", "9223372036854775808"),
    *("121", "121.0", "120", "4", "480", "848.0", "-16", "6.5", "6,5", "1e999", "1.7976931348e308"),
    *("../../x", "/etc/passwd", "~/x", "CON", ".hidden", "a/b", "a" * 65, "pic.png", "broken.png"),
    *("missing.png", "https://example.invalid/x.png", "folder", "pipe", "pic.png\0", "$HOME"),
    *("${oc.env:HOME}", "${manifest}", "$(id)", "`id`", "%s%n", "{0}", "<script>", "=1+1", "@x"),
    *(
        '"',
        '""',
        'a "sign"',
        "“OPEN”",
        "'",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "\ufeff",
        "\u202e",
        "\x1b[2J",
    ),
    *(
        "# scene 1",
        "// x",
        "---",
        "A cat --w 832 --h 480",
        "A cat -- old --",
        "1. a",
        "- a",
        "prompt",
    ),
    *(
        "<lora:x:1>",
        "(a:1.3)",
        "{a|b}",
        "__a__",
        "Negative prompt: x",
        "BREAK",
        "C:\\a.png",
        "PIC.png",
    ),
    *("\ud800", "e\u0301" * 40, "🦊", "\u2028", "\x00", "\x7f", "word " * 300),
)
texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=30))
PLAUSIBLE: dict[str, tuple[Any, ...]] = {
    "prompt": ("a cat", "A dog, and a “sign”.", 'a sign reads "OPEN"', "NA", "é"),
    "id": ("", "row1", "Row-2", "c_3", "d.4"),
    "seed": ("", 7, "7", "1 2 5", "0..3", "3,9"),
    "negative_prompt": ("", "blurry"),
    "image": ("", "", "", "pic.png"),
    "height": ("", "", 480, "480.0"),
    "width": ("", "", 848, "848"),
    "num_frames": ("", 61, "121", "121.0"),
    "num_inference_steps": ("", 4, "50"),
    "guidance_scale": ("", 6, "6.5", 1.0),
    "flow_shift": ("", "5", 5.0),
    "fps": ("", 24, "23.976"),
}
columns = st.one_of(
    st.sampled_from(KNOWN_COLUMNS),
    st.sampled_from(("prompt", "prompt", "tag_x", "tag_", "Prompt", " seed", "steps", "frames")),
    st.sampled_from(("caption", "text", "Num-Frames", "TAG X", "videopath", "style", "size")),
    st.sampled_from(("", "Unnamed: 0", "__index_level_0__", "tag_\x1b", "file", "prompt,seed")),
    st.text(max_size=8),
)
plain_columns = st.lists(st.sampled_from(KNOWN_COLUMNS), max_size=5, unique=True)
odd_columns = st.lists(columns, min_size=1, max_size=6)
plain_headers = plain_columns.map(lambda names: ["prompt", *(n for n in names if n != "prompt")])
headers = st.one_of(plain_headers, plain_headers, plain_headers, odd_columns)
huge = st.sampled_from((131_073, 1_000_001)).map("x".__mul__)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from((0, 7, 16, 121, 2**31, 2**53 + 1, 2**63, 10**99)),
    st.floats(),
    texts,
)


def cells_of(column: str, odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return cells of a column, about one in ten of them odd."""
    plausible = st.sampled_from(PLAUSIBLE.get(column, ("", "label")))
    if column == "prompt":
        plausible |= st.integers(0, 999).map("clip {}".format)
    return st.integers(0, 9).flatmap(lambda number: plausible if number else odd)


def spoilt(content: bytes, place: int, how: str) -> bytes:
    """Return content with one thing wrong, somewhere."""
    at = place % (len(content) + 1)
    head, tail = content[:at], content[at:]
    pieces: dict[str, bytes] = {
        "": content,
        "cut": head,
        "nul": head + b"\0" + tail,
        "byte": head + b"\xff" + tail,
        "quote": head + b'"' + tail,
        "return": head + b"\r" + tail,
        "bom": b"\xef\xbb\xbf" + content,
        "two boms": b"\xef\xbb\xbf" * 2 + content,
        "utf-16 bom": b"\xff\xfe" + content,
        "utf-32 bom": b"\xff\xfe\0\0" + content,
        "empty": b"",
        "twice": content + content,
    }
    return pieces[how]


HOWS = ("cut", "nul", "byte", "quote", "return", "bom", "two boms", "utf-16 bom", "utf-32 bom")
spoilers: st.SearchStrategy[Callable[[bytes], bytes]] = st.builds(
    lambda place, how: lambda content: spoilt(content, place, how),
    st.integers(0, 10_000),
    st.sampled_from((*[""] * 20, *HOWS, "empty", "twice")),
)
encodings = st.sampled_from(
    (*["utf-8"] * 12, "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252")
)


def encoded(text: str, encoding: str) -> bytes:
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    return text.encode(encoding, errors)


# -- CSV --------------------------------------------------------------------------------------


def csv_text(names: list[str], rows: list[list[str]], separator: str, end: str, raw: bool) -> str:
    """Return a table as CSV; `raw` leaves every quotation mark as it is."""
    if raw:
        return end.join(separator.join(cells) for cells in [names, *rows]) + end
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows([names, *rows])
    return out.getvalue()


@st.composite
def csv_manifests(draw: st.DrawFn) -> Manifest:
    names = draw(headers)
    surplus = ["prompt"] * draw(st.sampled_from((*[0] * 15, 1)))
    cells = st.tuples(*(cells_of(name, texts) for name in (*names, *surplus)))
    rows = [list(map(str, row)) for row in draw(st.lists(cells, min_size=1, max_size=5))]
    if rows and rows[0] and draw(st.integers(0, 60)) == 60:
        rows[0][-1] = draw(huge)
    separator = draw(st.sampled_from((*[","] * 9, ";", ";", "\t", "\t", "|")))
    text = csv_text(
        names,
        rows,
        separator,
        draw(st.sampled_from((*["\n"] * 6, "\r\n", "\n\n", "\r"))),
        draw(st.sampled_from((*[False] * 5, True))),
    )
    first = draw(st.sampled_from((*[""] * 9, f"sep={separator}\n", "sep=;\r\n", "#TYPE X\n", "\n")))
    name = draw(st.sampled_from(("new.csv", "new.csv", "new.tsv")))
    return name, draw(spoilers)(encoded(first + text, draw(encodings)))


# -- JSON Lines -------------------------------------------------------------------------------

json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
json_records = st.lists(st.tuples(columns, json_values), max_size=5).map(
    lambda pairs: "{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs) + "}"
)
plain_records = plain_headers.flatmap(
    lambda names: st.fixed_dictionaries({name: cells_of(name, json_values) for name in names})
).map(lambda record: json.dumps(record, ensure_ascii=False))
odd_lines = st.one_of(
    json_values.map(json.dumps),
    texts,
    st.sampled_from(
        (
            "[" * 100_000,
            '{"prompt": ' * 5_000,
            '{"prompt": "a", "seed": ' + "9" * 5_000 + "}",
            '{"prompt": "a", "seed": -1e400}',
            '{"prompt": "a", "fps": Infinity}',
            '{"prompt": "a", "prompt": "b"}',
            '{"prompt": "\\ud800"}',
            '{"prompt": "a"} {"prompt": "b"}',
            '{"prompt": "a",}',
            "{'prompt': 'a'}",
            '{"prompt": "a", "seed": ["0..3", [1], {"a": 1}, null]}',
            '{"prompt": "a", "height": true, "width": [848]}',
        )
    ),
)


@st.composite
def json_manifests(draw: st.DrawFn) -> Manifest:
    odd = st.one_of(json_records, odd_lines)
    line = st.integers(0, 9).flatmap(lambda number: plain_records if number else odd)
    lines = draw(st.lists(line, max_size=5))
    end = draw(st.sampled_from((*["\n"] * 6, "\r\n", "\r")))
    name = draw(st.sampled_from(("new.jsonl", "new.ndjson")))
    return name, draw(spoilers)(encoded(end.join(lines), draw(encodings)))


@st.composite
def json_files(draw: st.DrawFn) -> Manifest:
    """Arrays, and what is taken for one: objects in turn, a lone value, an object of arrays."""
    odd = st.one_of(json_records, odd_lines, texts.map(json.dumps))
    item = st.integers(0, 9).flatmap(lambda number: plain_records if number else odd)
    items = draw(st.lists(item, max_size=5))
    before, between, after = draw(
        st.sampled_from(
            (
                *[("[", ",", "]")] * 8,
                ("[\n  ", ",\n  ", "\n]\n"),
                ("", "\n", ""),
                ("[", ",", ",]"),
                ("[", " ", "]"),
                ("[", ",", ""),
                ('{"prompts": [', ",", "]}"),
                ("[" * 100, ",", "]" * 100),
            )
        )
    )
    text = before + between.join(items) + after
    return "new.json", draw(spoilers)(encoded(text, draw(encodings)))


# -- Parquet ----------------------------------------------------------------------------------

_TYPES: tuple[tuple[pa.DataType, Any], ...] = (
    (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
    (pa.large_string(), st.just("a cat")),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(("a cat", "a dog"))),
    (pa.binary(), st.binary(max_size=8)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int8(), st.integers(-128, 127)),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.sampled_from((121.0, 480.0, 0.0, 7.0))),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(20, 2), st.decimals(-(10**9), 10**9, places=2).map(Decimal)),
    (pa.date32(), st.dates(date(1, 1, 1))),
    (pa.timestamp("us", "UTC"), st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1))),  # noqa: DTZ001
    (pa.timestamp("ns"), st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))),  # noqa: DTZ001
    (pa.duration("ns"), st.timedeltas(timedelta(-1000), timedelta(1000))),
    (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.list_(pa.string()), st.lists(st.sampled_from(("0..3", "7", "x")), max_size=3)),
    (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)))),
    (pa.null(), st.none()),
)
utf8_columns = headers.map(
    lambda names: [name.encode("utf-8", "replace").decode() for name in names]
)


@st.composite
def parquet_manifests(draw: st.DrawFn) -> Manifest:
    names = draw(utf8_columns)
    count = draw(st.integers(0, 4))
    arrays = []
    for name in names:
        is_plain = name in PLAUSIBLE and draw(st.integers(0, 9))
        texts_of_it = st.sampled_from(tuple(map(str, PLAUSIBLE.get(name, ("",)))))
        kind, values = (pa.string(), texts_of_it) if is_plain else draw(st.sampled_from(_TYPES))
        holes = st.none() if name != "prompt" else values
        cells = draw(st.lists(holes | values, min_size=count, max_size=count))
        arrays.append(pa.array(cells, type=kind))
    out = io.BytesIO()
    pq.write_table(pa.table(arrays, names=names), out)
    return "new.parquet", draw(spoilers)(out.getvalue())


@st.composite
def text_manifests(draw: st.DrawFn) -> Manifest:
    text = draw(st.sampled_from(("\n", "\r\n", "\r"))).join(draw(st.lists(texts, max_size=5)))
    return "new.txt", draw(spoilers)(encoded(text, draw(encodings)))


manifests = st.one_of(
    csv_manifests(),
    csv_manifests(),
    json_manifests(),
    json_files(),
    parquet_manifests(),
    text_manifests(),
    st.tuples(
        st.sampled_from(tuple(f"new{suffix}" for suffix in MANIFEST_SUFFIXES)),
        st.binary(max_size=60),
    ),
)

# -- command lines ----------------------------------------------------------------------------

# No NUL, which no argument can hold, and no slash: it could name a folder outside of the test's.
word_texts = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]) | st.sampled_from("\udcff"),
    max_size=20,
)
ODD_VALUES = (
    *("", "true", "false", "null", "0", "1", "-1", "2", "1e999", "nan", "inf", "1.5", "007", "1_0"),
    *("0..3", "1,2,5", "[1,2]", "[]", "{a:1}", "{}", "a,b", "'a,b'", '"x"', "'", '"', "\\", "\\'"),
    *("${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${manifest}", "${no.such}", "${", "$", "}"),
    *("${hydra:run.dir}", "${oc.decode:1}", "${${a}}", "???", "int(3)", "str(a)", "float(x)"),
    *("choice(1,2)", "range(1,4)", "glob(*)", "shuffle(1,2)", "sort(2,1)", "tag(a,1)", "f(", "(("),
    *("07:00", "25:00", "8h", "-8h", "22:00-07:00", "rtx_4090", "rtx", "auto", "cuda", "ffv1"),
    *("tiny_t2v", "tiny_i2v", "480p_t2v", "480p_t2v,tiny_t2v", "resident,stream", "local", "rows"),
    *("rtx4090_standard", "row0", "cat,dog", "a" * 5000, "é" * 300, "🦊", "\udcff", "a b", "a\nb"),
)
PLAIN_SETTINGS = (
    *(
        "override.num_frames=5",
        "sampling.seeds=0..3",
        "override.seeds=1,2",
        "limit=1",
        "order=rows",
    ),
    *("only=row0", "force=true", "offload=stream", "video.crf=20", "video.codec=ffv1", "add=true"),
    *("until=07:00", "runtime.card=rtx_4090", "keep_latents=false", "check_files=sha256"),
    *("sampling.negative_prompt=a, b", "override.fps=12", "runtime.compile=true", "run_dir=done"),
    *("experiment=rtx4090_standard", "model=480p_t2v_distilled", "model.weights=random"),
    *("manifest_literal=true", "manifest_other=tag", "manifest_columns.prompt=Video Caption, long"),
)
PATHS = (
    *("out", "done", "a/b/c", "../up", "prompts.csv", "prompts.csv/x", "done/clips", "~", "."),
    *("~nobody/x", "", "x" * 300, "with space", "a,b", "a=b", "[x]", "${x}", "a\udcffb", "done/"),
)
MANIFESTS = (
    *("prompts.csv", "prompts.csv", "prompts.csv", "my file (1).csv", "a=b.csv", "${x}.csv"),
    *("missing.csv", "folder.csv", "broken.csv", "Füße.jsonl", "prompts.CSV", ".csv", "x" * 300),
    *("manifests/demo.csv", "manifests/no.csv", "prompts.csv ", "-.csv", "done/plan.csv"),
)
HYDRA = (
    *("hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x", "hydra.sweep.subdir=../../x"),
    *(
        "hydra.output_subdir=.hydra",
        "hydra.job.chdir=true",
        "hydra.verbose=true",
        "hydra.job.name=x",
    ),
    *(
        "hydra/launcher=basic",
        "hydra/launcher=joblib",
        "hydra/job_logging=default",
        "hydra.mode=RUN",
    ),
    *("hydra/job_logging=none", "hydra/hydra_logging=disabled", "hydra.mode=MULTIRUN", "hydra=x"),
    *(
        "hydra.searchpath=[folder]",
        "hydra.job.env_set.X=1",
        "hydra.help.template=x",
        "hydra/help=x",
    ),
    *("hydra.launcher.n_jobs=2", "hydra.sweeper.max_batch_size=1", "+hydra.x=1", "~hydra.run.dir"),
)
FLAGS = (
    *(
        "-m",
        "--multirun",
        "--dry-run",
        "--cfg",
        "--cfg=job",
        "--cfg=x",
        "-c",
        "--info",
        "--resolve",
    ),
    *(
        "--info=all",
        "--info=plugins",
        "-i",
        "--package",
        "--package=_global_",
        "-p",
        "--hydra-help",
    ),
    *("--config-dir", "--config-dir=folder", "-cd", "--config-name=x", "--config-path=x", "-cn"),
    *("--run", "-r", "--shell-completion", "-sc", "--experimental-rerun=x", "--version", "--help"),
    *("-h", "--", "-", "---", "--no", "-x", "--dry-run=1", "--limit", "--force", "--watch-not"),
)
WORDS = ("report", "status", "prefetch", "help", "compare", "resume", "render", "Report", "job")
keys = st.one_of(
    st.sampled_from(setting_names()),
    st.sampled_from(GROUPS),
    st.sampled_from(("sampling", "model.", ".", "modle", "steps", "override.frames", "a.b@c", "")),
    word_texts,
).filter(lambda key: "dry_run" not in key and key not in ("manifest", "run_dir", "resume"))
values = st.one_of(st.sampled_from(ODD_VALUES), word_texts)
settings = st.builds(
    lambda prefix, key, value: f"{prefix}{key}={value}",
    st.sampled_from(("", "", "", "", "", "", "+", "++", "~")),
    keys,
    values,
)
path_settings = st.builds(
    lambda key, path: f"{key}={path}",
    st.sampled_from(("run_dir", "resume", "only")),
    st.sampled_from(PATHS),
)
manifest_words = st.builds(
    str.__add__, st.sampled_from(("", "", "manifest=")), st.sampled_from(MANIFESTS)
)
plain_words = st.sampled_from(PLAIN_SETTINGS)
words = st.one_of(
    plain_words,
    plain_words,
    settings,
    settings,
    path_settings,
    manifest_words,
    st.sampled_from(FLAGS),
    st.sampled_from(HYDRA),
    st.sampled_from(WORDS),
    st.sampled_from(PATHS).filter(bool),
    word_texts,
).filter(lambda word: not word.lstrip("+~").startswith("dry_run"))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Words of which most begin with a manifest; what renders is a dry run of a tiny model."""
    is_plain = draw(st.booleans())
    line = draw(st.lists(plain_words if is_plain else words, max_size=3))
    if is_plain:
        line.insert(draw(st.integers(0, len(line))), draw(words))
    if draw(st.integers(0, 4)):
        line.insert(0, draw(manifest_words))
        line.extend(draw(st.sampled_from((["model=tiny_t2v"], ["model=tiny_t2v"], []))))
    if line and line[0] not in ("report", "status"):
        line.append("dry_run=true")
    return line
