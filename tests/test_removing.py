"""`download`, `update` and `remove` of what is in the cache, as the commands do it."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.utils import WeakFileLock

from llm_diffusiongemma import hub as hub_module
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, Source
from llm_diffusiongemma.errors import CheckpointNotFoundError, HubConnectionError, RemovalError
from llm_diffusiongemma.hub.cache import Repository

from .loopback_hub import COMMIT, FIRST_SHARD, LAST_SHARD, NEWER_COMMIT, REPO, LoopbackHub, fill_cache

OTHER = "somebody/tuned"
SOURCE = Source(REPO)


@pytest.fixture
def newer(hub: LoopbackHub, in_process: None) -> None:
    """A newer commit, in which one shard is another."""
    hub_module.download(SOURCE)
    hub.newer = {**hub.files, LAST_SHARD: hub.files[LAST_SHARD] + b" "}
    hub.requests.clear()


@pytest.mark.usefixtures("newer")
def test_download_is_content_with_what_is_here(hub: LoopbackHub) -> None:
    assert hub_module.download(SOURCE).resolved_model == f"{REPO}@{COMMIT}"
    assert hub.requests == []


@pytest.mark.usefixtures("newer")
def test_update(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is new comes, prompts use it, and what was here stays and is named."""
    assert hub_module.download(SOURCE, update=True).resolved_model == f"{REPO}@{NEWER_COMMIT}"
    assert hub.file_gets == [LAST_SHARD]
    said = capsys.readouterr().err
    assert f"There is a newer commit of {REPO}: {NEWER_COMMIT[:12]}. Here is {COMMIT[:12]}." in said
    assert (
        f"(commit {COMMIT[:12]}, 3.1 MB of their own) stay on disk. To remove them: hf cache rm {COMMIT}" in said
    )
    assert hub_module.locate(SOURCE, "x", lambda size: None).folder.name == NEWER_COMMIT
    hub.requests.clear()
    hub_module.download(SOURCE, update=True)
    assert hub.file_gets == []
    huggingface_hub.scan_cache_dir().delete_revisions(COMMIT).execute()
    assert (hub_module.download(SOURCE).folder / FIRST_SHARD).exists()


@pytest.mark.usefixtures("newer")
def test_an_update_that_was_cut(hub: LoopbackHub) -> None:
    """What was here is as good as before, and the update goes on where it was."""
    hub.truncate_to = 1_500_000
    with pytest.raises(OSError, match="did not come whole"):
        hub_module.download(SOURCE, update=True)
    assert hub_module.locate(SOURCE, "x", lambda size: None).folder.name == COMMIT
    hub.truncate_to = None
    hub.requests.clear()
    hub_module.download(SOURCE, update=True)
    assert hub.last_shard_ranges == ["bytes=1500000-"]


@pytest.mark.usefixtures("newer")
def test_an_update_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubConnectionError, match=f"are here \\(commit {COMMIT[:12]}\\), and .* a newer commit"):
        hub_module.download(SOURCE, update=True)


@pytest.mark.usefixtures("in_process")
def test_remove(hub: LoopbackHub, cache: Path, checkpoint_files: dict[str, bytes]) -> None:
    """All of a repository, and nothing of another one."""
    hub.others[OTHER] = checkpoint_files
    for source in (SOURCE, Source(OTHER)):
        hub_module.download(source)
    removal = hub_module.removal(SOURCE)
    size = sum(map(len, checkpoint_files.values()))
    assert removal == hub_module.Removal(REPO, (COMMIT,), size, True)
    assert hub_module.on_disk(SOURCE) is not None  # so far nothing has happened
    hub_module.remove(removal)
    assert hub_module.on_disk(SOURCE) is None
    assert not Repository.of(REPO).folder.exists()
    assert not Repository.of(REPO).lock("x").parent.exists()
    hub.requests.clear()
    hub_module.download(Source(OTHER))
    assert hub.requests == []
    with pytest.raises(RemovalError, match=f"Nothing of {REPO} is in this machine's"):
        hub_module.removal(SOURCE)


@pytest.mark.usefixtures("in_process")
def test_remove_one_of_many_copies(cache: Path) -> None:
    """They have the same commit, and huggingface_hub would remove it from whichever it finds first."""
    repos = [f"somebody/copy-{number}" for number in range(20)]
    for repo in repos:
        fill_cache(cache, {"config.json": b"{}"}, repo)
    hub_module.remove(hub_module.removal(Source(repos[7])))
    assert [repo for repo in repos if not Repository.of(repo).folder.exists()] == [repos[7]]


@pytest.mark.usefixtures("newer")
def test_remove_a_revision(hub: LoopbackHub) -> None:
    """What another revision needs stays."""
    hub_module.download(SOURCE, update=True)
    begun = Repository.of(REPO).partial("f" * 64)
    begun.touch()
    old = Source(REPO, revision=COMMIT)
    removal = hub_module.removal(old)
    assert removal == hub_module.Removal(REPO, (COMMIT,), len(hub.files[LAST_SHARD]), False)
    hub_module.remove(removal)
    assert begun.exists()
    assert hub_module.on_disk(old) is None
    hub.requests.clear()
    assert hub_module.download(SOURCE).resolved_model == f"{REPO}@{NEWER_COMMIT}"
    assert hub.requests == []
    with pytest.raises(RemovalError, match=f"Nothing of {REPO} in revision {COMMIT}"):
        hub_module.removal(old)


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("revision", [COMMIT, None])
def test_what_a_link_leads_to_outside_stays(revision: str | None, hub: LoopbackHub, tmp_path: Path) -> None:
    """A file of the user's own that somebody has linked into a snapshot is neither deleted nor counted."""
    hub_module.download(SOURCE, update=True)
    source = Source(REPO, revision=revision)
    num_bytes = hub_module.removal(source).num_bytes
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (Repository.of(REPO).snapshot(COMMIT) / "mine").symlink_to(mine)
    removal = hub_module.removal(source)
    assert removal.num_bytes == num_bytes
    hub_module.remove(removal)
    assert hub_module.on_disk(source) is None
    assert mine.exists()


@pytest.mark.usefixtures("newer")
def test_what_else_is_where_a_repository_is_linked_to_stays(tmp_path: Path) -> None:
    folder, elsewhere = Repository.of(REPO).folder, tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (elsewhere / "mine").touch()
    hub_module.remove(hub_module.removal(SOURCE))
    assert not folder.is_symlink()
    assert [*elsewhere.iterdir()] == [elsewhere / "mine"]


@pytest.mark.usefixtures("in_process")
def test_remove_what_was_only_begun(hub: LoopbackHub, cache: Path) -> None:
    hub.truncate_to = 1_500_000
    with pytest.raises(OSError, match="did not come whole"):
        hub_module.download(SOURCE)
    here = hub_module.on_disk(SOURCE)
    removal = hub_module.removal(SOURCE)
    assert here is not None
    assert removal.num_bytes == here.num_bytes
    hub_module.remove(removal)
    assert not Repository.of(REPO).folder.exists()


@pytest.mark.usefixtures("in_process")
def test_remove_what_is_not_in_order(cache: Path, checkpoint_files: dict[str, bytes]) -> None:
    """A content is gone: huggingface_hub doesn't know what to make of that."""
    snapshot = fill_cache(cache, checkpoint_files)
    (snapshot / LAST_SHARD).resolve().unlink()
    removal = hub_module.removal(SOURCE)
    assert removal.num_bytes == sum(map(len, checkpoint_files.values())) - len(checkpoint_files[LAST_SHARD])
    hub_module.remove(removal)
    assert not Repository.of(REPO).folder.exists()


@pytest.mark.usefixtures("in_process")
def test_remove_what_is_in_use(cache: Path, checkpoint_files: dict[str, bytes]) -> None:
    """Another process holds a lock: nothing is touched."""
    fill_cache(cache, checkpoint_files)
    lock = Repository.of(REPO).lock("0" * 64)
    lock.parent.mkdir(parents=True)
    removal = hub_module.removal(SOURCE)
    with WeakFileLock(lock), pytest.raises(RemovalError, match="is in use: another process is downloading it"):
        hub_module.remove(removal)
    assert hub_module.removal(SOURCE) == removal


@pytest.mark.usefixtures("in_process")
def test_remove_what_the_disk_keeps(
    cache: Path, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows does with open files."""
    fill_cache(cache, checkpoint_files)
    removal = hub_module.removal(SOURCE)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(os, "rmdir", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(RemovalError, match=f"Not all of {REPO} could be removed: .* used by another process"):
        hub_module.remove(removal)


def test_a_folder_of_ones_own_is_never_removed(tmp_path: Path) -> None:
    with pytest.raises(RemovalError, match="a folder of your own, which is never deleted"):
        hub_module.removal(Source(EMBEDDED_CHECKPOINT))
    assert hub_module.download(Source(EMBEDDED_CHECKPOINT)).folder == EMBEDDED_CHECKPOINT
    with pytest.raises(CheckpointNotFoundError, match="There is no folder"):
        hub_module.download(Source(tmp_path / "nothing"))
    with pytest.raises(CheckpointNotFoundError, match="can't be a revision"):
        hub_module.removal(Source(REPO, revision="../.."))


@pytest.mark.usefixtures("in_process")
def test_remove_a_repository_on_another_disk(
    cache: Path, checkpoint_files: dict[str, bytes], tmp_path: Path
) -> None:
    fill_cache(cache, checkpoint_files)
    elsewhere = Repository.of(REPO).folder.rename(tmp_path / "disk")
    Repository.of(REPO).folder.symlink_to(elsewhere)
    hub_module.remove(hub_module.removal(SOURCE))
    assert list(tmp_path.iterdir()) == [cache]
    assert not Repository.of(REPO).folder.is_symlink()


@pytest.mark.usefixtures("in_process")
def test_links_lead_nowhere_out(cache: Path, checkpoint_files: dict[str, bytes], tmp_path: Path) -> None:
    """What a snapshot's links show to outside of the repository stays."""
    snapshot = fill_cache(cache, checkpoint_files)
    outside = tmp_path / "precious.safetensors"
    outside.write_bytes(b"mine")
    for name in (LAST_SHARD, "a-folder"):
        (snapshot / name).unlink(missing_ok=True)
    (snapshot / LAST_SHARD).symlink_to(outside)
    (snapshot / "a-folder").symlink_to(tmp_path)
    hub_module.remove(hub_module.removal(SOURCE))
    assert outside.read_bytes() == b"mine"
    assert not Repository.of(REPO).folder.exists()
