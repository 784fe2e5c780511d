"""Several repositories and revisions of them: what is on disk of each, and what is asked for."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from llm_diffusiongemma import hub as hub_module
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, Source
from llm_diffusiongemma.errors import CheckpointNotFoundError, DownloadError, HubConnectionError
from llm_diffusiongemma.hub import cache as cache_module

from .loopback_hub import COMMIT, LAST_SHARD, NEWER_COMMIT, REPO, LoopbackHub, Refusal, fill_cache

OTHER = "somebody/tuned"


def located(source: Source) -> hub_module.Checkpoint:
    return hub_module.locate(source, "diffusiongemma", lambda weight_bytes: None)


@pytest.mark.usefixtures("in_process")
def test_several_repositories(hub: LoopbackHub, checkpoint_files: dict[str, bytes]) -> None:
    """Each is downloaded to its own place, and none stands for another."""
    hub.others[OTHER] = {name: content + b" " for name, content in checkpoint_files.items()}
    for source, files in ((Source(REPO), checkpoint_files), (Source(OTHER), hub.others[OTHER])):
        assert hub_module.on_disk(source) is None
        checkpoint = located(source)
        assert checkpoint.resolved_model == f"{source.where}@{COMMIT}"
        assert (checkpoint.folder / LAST_SHARD).read_bytes() == files[LAST_SHARD]
        size = sum(map(len, files.values()))
        assert hub_module.on_disk(source) == hub_module.OnDisk(checkpoint.folder, COMMIT, size, 0, True)


@pytest.mark.usefixtures("in_process")
def test_a_download_that_was_begun_is_counted(hub: LoopbackHub, checkpoint_files: dict[str, bytes]) -> None:
    hub.truncate_to = 1_000_000
    with pytest.raises(Exception, match="did not come whole"):
        located(Source(REPO))
    here = hub_module.on_disk(Source(REPO))
    assert here is not None
    assert here.missing_bytes == len(checkpoint_files[LAST_SHARD]) - 1_000_000
    assert here.num_bytes + here.missing_bytes == sum(map(len, checkpoint_files.values()))
    assert not here.is_whole


@pytest.mark.usefixtures("in_process")
def test_what_an_older_cache_says(cache: Path, checkpoint_files: dict[str, bytes]) -> None:
    """It has no list: what is missing of it the Hub has to say."""
    snapshot = fill_cache(cache, checkpoint_files)
    size = sum(map(len, checkpoint_files.values()))
    assert hub_module.on_disk(Source(REPO)) == hub_module.OnDisk(snapshot, COMMIT, size, 0, True)
    (snapshot / LAST_SHARD).resolve().unlink()
    size -= len(checkpoint_files[LAST_SHARD])
    assert hub_module.on_disk(Source(REPO)) == hub_module.OnDisk(snapshot, COMMIT, size, None, False)


def test_a_folder_of_ones_own_is_whole(tmp_path: Path) -> None:
    here = hub_module.on_disk(Source(EMBEDDED_CHECKPOINT))
    assert here is not None
    assert (here.folder, here.commit, here.missing_bytes, here.is_whole) == (EMBEDDED_CHECKPOINT, None, 0, True)
    assert here.num_bytes > (EMBEDDED_CHECKPOINT / "model.safetensors").stat().st_size
    assert hub_module.on_disk(Source(tmp_path / "nothing")) is None


# --- revisions ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_commits(hub: LoopbackHub, checkpoint_files: dict[str, bytes]) -> None:
    hub.newer = {name: content + b" " for name, content in checkpoint_files.items()}
    hub.branches = {"v1": COMMIT, "pr/2": NEWER_COMMIT}


@pytest.mark.usefixtures("in_process", "two_commits")
def test_a_revision_is_asked_for_once(hub: LoopbackHub, cache: Path) -> None:
    """A commit, a tag or a branch that is here needs no network, whatever is the newest."""
    for revision, commit in (("v1", COMMIT), (COMMIT, COMMIT), ("pr/2", NEWER_COMMIT), (None, NEWER_COMMIT)):
        source = Source(REPO, revision=revision)
        checkpoint = located(source)
        assert checkpoint.resolved_model == f"{REPO}@{commit}"
        assert (checkpoint.folder / LAST_SHARD).read_bytes() == hub.files_of(commit)[LAST_SHARD]
        hub.requests.clear()
        assert located(source) == checkpoint
        assert hub_module.newest(source) == commit
        assert [request.file for request in hub.requests] == [None]
    repository = cache_module.Repository.of(REPO)
    assert {file.name for file in repository.ref("v1").parent.iterdir()} == {"v1", "pr"}
    assert repository.ref("pr/2").read_text() == NEWER_COMMIT


@pytest.mark.usefixtures("in_process", "two_commits")
def test_another_revision_is_not_good_enough(
    hub: LoopbackHub, cache: Path, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(cache, checkpoint_files)
    assert hub_module.on_disk(Source(REPO, revision=NEWER_COMMIT)) is None
    assert located(Source(REPO)).resolved_model == f"{REPO}@{COMMIT}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubConnectionError, match=f"hf download {REPO} --revision {NEWER_COMMIT}"):
        located(Source(REPO, revision=NEWER_COMMIT))
    with pytest.raises(HubConnectionError, match="HF_HUB_OFFLINE"):
        hub_module.newest(Source(REPO))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("revision", ["v7", "f" * 40])
def test_a_revision_that_the_hub_does_not_have(revision: str, hub: LoopbackHub) -> None:
    for ask in (located, hub_module.newest):
        with pytest.raises(CheckpointNotFoundError, match=f"not its revision {revision}"):
            ask(Source(REPO, revision=revision))
    assert hub.file_gets == []


@pytest.mark.usefixtures("in_process")
def test_a_repository_that_the_hub_does_not_have(hub: LoopbackHub) -> None:
    """A name of one's own is mistyped soonest."""
    hub.refuse_all = Refusal(401, "RepoNotFound")
    for repo, is_own in ((OTHER, True), (REPO, False)):
        with pytest.raises(DownloadError, match=f"does not have {repo}, ") as raised:
            located(Source(repo))
        assert ("a slip in that name" in str(raised.value)) == is_own


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "revision", ["", "..", "../../x", "/etc/passwd", "a\n", "refs/../../x", "x?blobs", "x" * 300]
)
def test_what_can_be_no_revision(revision: str, hub: LoopbackHub, tmp_path: Path) -> None:
    for ask in (located, hub_module.newest, hub_module.on_disk):
        with pytest.raises(CheckpointNotFoundError, match="can't be a revision"):
            ask(Source(REPO, revision=revision))
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []
