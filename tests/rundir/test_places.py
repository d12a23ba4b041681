"""What others have put into a run directory: links, hidden files, half a folder tree, no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.runs import Project

from hv15_batch.errors import Refused
from hv15_batch.files import is_temporary, sweep
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import overwrite_json, publish_json, publish_text, publishing
from hv15_batch.weights.files import write_json

OURS = f".{'0123456789abcdef'}.a.mp4"
PARTS = ("clips", "latents", "thumbs", "log", "embeddings", "runs", "assets")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    return project


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user with hidden files, one of them with a name of our form."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (".bashrc", ".profile", OURS, ".12.mine.mp4"):
        (home / name).write_text("mine", encoding="utf-8")
    return home


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        (OURS, True),
        (".0123456789abcdef.plan.csv", True),
        (".4711.plan.csv", True),  # of a version before
        (".bashrc", False),
        (".x.parquet", False),
        (".1.", False),
        (".2024.notes", False),
        (".0123456789ABCDEF.a.mp4", False),
        (".0123456789abcdef", False),
        (".nfs000000000000000100000001", False),
        (".lock.json", False),
        ("0123456789abcdef.a.mp4", False),
    ],
)
def test_only_names_of_our_own_form_are_temporary(name: str, is_ours: bool) -> None:
    assert is_temporary(name) is is_ours


def test_a_temporary_name_cannot_be_foretold_and_is_known_again(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with publishing(tmp_path / "a.csv") as temporary:
            names.add(temporary.name)

    assert len(names) == 3
    assert all(is_temporary(name) for name in names)
    assert not any(str(os.getpid()) == name.split(".")[1] for name in names)


# -- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [publish_json, write_json])
def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 16)
    (tmp_path / f".{'0' * 16}.a.json").symlink_to(victim)

    with pytest.raises(FileExistsError):
        write(tmp_path / "a.json", {"new": 1})

    assert victim.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_a_file_that_is_exchanged_while_it_is_written_gets_no_visible_name(
    tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")

    def exchange() -> None:
        with publishing(tmp_path / "a.csv") as temporary:
            temporary.unlink()
            temporary.symlink_to(victim) if kind == "link" else os.link(victim, temporary)

    with pytest.raises(OSError, match="another file was put in its place"):
        exchange()

    assert victim.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "a.csv").exists()


def test_a_visible_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    for name in ("plan.csv", "status.json"):
        (tmp_path / name).symlink_to(victim)

    publish_text(tmp_path / "plan.csv", "new")
    with pytest.raises(OSError, match="symbolic link"):
        overwrite_json(tmp_path / "status.json", {})

    assert victim.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "plan.csv").is_symlink()


@pytest.mark.parametrize("name", [".lock", "status.json", "index.html", "clips.csv", ".lock.json"])
def test_a_run_writes_through_no_link_at_a_name_of_its_own(project: Project, name: str) -> None:
    victim = project.folder / "victim"
    victim.write_text("mine", encoding="utf-8")
    project.run_dir.create()
    (project.run_dir.path / name).symlink_to(victim)

    if name == ".lock":
        with pytest.raises(Refused, match="is a link, and a run locks this file; remove"):
            project.run()
    else:
        assert project.run() == 0

    assert victim.read_text(encoding="utf-8") == "mine"


# -- sweeping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_cleared_away_through_a_linked_folder(
    project: Project, home: Path, part: str
) -> None:
    assert project.run() == 0
    folder = project.run_dir.path / part
    if folder.exists():
        folder.rename(project.folder / f"before-{part}")
    (home / "one").mkdir()  # a run's folder, if this is `runs`
    (home / "one" / OURS).touch()
    folder.symlink_to(home, target_is_directory=True)
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}

    project.run_dir.sweep_temporary()

    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("part", ["clips", "latents", "thumbs", "embeddings"])
def test_a_run_goes_on_in_a_linked_folder_says_so_and_leaves_what_is_there(
    project: Project, home: Path, part: str
) -> None:
    project.run_dir.create()
    (project.run_dir.path / part).rmdir()
    (project.run_dir.path / part).symlink_to(home, target_is_directory=True)
    before = {p: p.read_bytes() for p in home.iterdir()}

    assert project.run() == 0

    assert all(p.read_bytes() == content for p, content in before.items())
    assert any(
        line.startswith(f"{project.run_dir.path / part} is a link to {home}: ")
        for line in project.said
    )


def test_no_page_is_written_through_a_linked_folder_and_the_run_stands(
    project: Project, home: Path
) -> None:
    (home / "page.js").write_text("mine", encoding="utf-8")
    project.run_dir.create()
    (project.run_dir.path / "assets").symlink_to(home, target_is_directory=True)

    assert project.run() == 0

    assert (home / "page.js").read_text(encoding="utf-8") == "mine"
    assert len(project.records()) == 2
    assert any("assets: is a link, where a page keeps its files" in x for x in project.said)


def test_links_and_folders_with_a_temporary_name_stay(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / OURS).symlink_to(victim)
    (folder / f".{'1' * 16}.b").mkdir()
    (folder / f".{'2' * 16}.c").touch()

    assert sweep(folder) == 1

    assert victim.exists()
    assert {p.name for p in folder.iterdir()} == {OURS, f".{'1' * 16}.b"}
    assert sweep(tmp_path / "missing") == sweep(victim) == 0


# -- a tree that was only begun ---------------------------------------------------------------


@pytest.mark.parametrize("count", range(7))
def test_a_run_that_ended_between_making_its_folders_is_begun_again(
    project: Project, count: int
) -> None:
    for folder in project.run_dir.written_folders()[:count]:
        folder.mkdir()
    (project.folder / "out" / OURS).touch() if count else None

    assert project.run() == 0

    assert len(project.records()) == 2
    assert project.strays() == []


def test_a_folder_that_was_linked_to_a_larger_disk_beforehand_is_usable(project: Project) -> None:
    large = project.folder / "large"
    large.mkdir()
    project.run_dir.path.mkdir()
    project.run_dir.clips.symlink_to(large, target_is_directory=True)

    assert project.run() == 0

    assert len(list(large.iterdir())) == 2


@pytest.mark.parametrize("name", ["clips/mine.mp4", "notes", "latents/deep/x", ".hidden"])
def test_a_folder_with_anything_else_is_still_refused(project: Project, name: str) -> None:
    path = project.run_dir.path / name
    path.parent.mkdir(parents=True)
    path.touch()

    with pytest.raises(Refused, match="holds other files"):
        project.run()


# -- file systems without locks ---------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_and_the_dry_run_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fault = (
        f"run_dir={project.run_dir.path}: the file system of {project.folder} has no file locks "
        f"({os.strerror(number)}), and two runs at once would spoil the folder; name one on a "
        "local disk with run_dir=DIR, or mount this one with locks (NFS without nolock, Lustre "
        "with flock)."
    )

    with pytest.raises(Refused) as refused:
        project.run()
    assert str(refused.value) == fault
    assert not project.run_dir.path.exists()
    assert project.run(dry_run=True) == 0
    assert f"A run would be refused: {fault}" in project.said
    with pytest.raises(Refused, match="has no file locks"), RunDir(project.folder).locked("r"):
        pass


def test_a_lock_that_cannot_be_tidied_up_does_not_replace_the_runs_end(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".lock.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    project.write("id,prompt", "cat,a cat", "dog,fail")

    assert project.run() == 3
    assert project.run() == 3  # the lock was released
