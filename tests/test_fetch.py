"""`align fetch`: what it plans, downloads (from a stand-in for the network) and checks."""

import hashlib
import io
import socket
from pathlib import Path

import pytest

from align.cli import main
from align.commands.fetch import check, digest, download, hub_files, plan, run
from align.config.commands import FetchConfig
from align.rewards.catalogue import (
    AESTHETIC_V1,
    BLIP_VQA,
    CLIP_H,
    CLIP_L,
    SETS,
    Source,
    published,
    size_text,
    sources,
)
from align.rewards.listing import list_rewards


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty `ALIGN_WEIGHTS`, and an empty cache of the Hub."""
    monkeypatch.setenv("ALIGN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def hub(monkeypatch, files: dict[str, bytes]):
    """Stand in for the Hub with these files; returns what was asked for."""
    asked = []

    def take(repo, name, local_dir=None):
        asked.append(name)
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
        note = path.parent / ".cache/huggingface/download" / f"{name}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{'0' * 40}\n{hashlib.sha256(files[name]).hexdigest()}\n1.0\n")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", take)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo: list(files))
    return asked


def test_plans_name_each_source_once():
    assert plan(("da-score", "blip-vqa")) == [BLIP_VQA]
    assert plan(("aesthetic:v1=0.5,clip",)) == [AESTHETIC_V1, CLIP_L]
    repos = {source.repo for source in plan(("carinox",))}
    assert {"xswu/HPSv2", "THUDM/ImageReward", BLIP_VQA.repo, "zhiqiulin/clip-flant5-xl"} < repos
    assert CLIP_H in plan(("reno",))
    assert plan(("clip:a/b",)) == [Source("a/b", ("config.json",), True)]
    assert sources("detector", "remove=person;model=hustvl/yolos-tiny")[0].repo.endswith("tiny")
    with pytest.raises(ValueError, match=r"'?jpeg'? has no published weights"):
        plan(("jpeg",))
    with pytest.raises(ValueError, match=r"asthetic has no published weights; did you mean aesth"):
        plan(("asthetic",))


def test_every_source_says_its_size_and_licence():
    for name, of_name in published().items():
        for source in of_name:
            assert source.size > 0, name
            assert source.licence != "unknown"
            assert source.files
    assert size_text(4071) == "4 kB"
    assert size_text(1970 * 10**6) == "about 2.0 GB"
    assert size_text(0) == "size unknown"


def test_weights_come_from_the_hub_once(place, monkeypatch):
    files = {
        "config.json": b"{}", "vocab.json": b"{}", "merges.txt": b"", "README.md": b"",
        "model.safetensors": b"weights", "pytorch_model.bin": b"the same", "onnx/model.onnx": b"",
    }  # fmt: skip
    asked = hub(monkeypatch, files)
    assert download(CLIP_L) == place / CLIP_L.repo
    assert sorted(asked) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    asked.clear()
    assert download(CLIP_L) == place / CLIP_L.repo
    assert asked == []
    said = check([CLIP_L], only_present=False)
    assert said.count("ok ") == 4
    (place / CLIP_L.repo / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its checksum is not"):
        check([CLIP_L], only_present=False)
    with pytest.raises(FileNotFoundError, match=r"Salesforce/blip-vqa-base lacks config.json"):
        run(FetchConfig(source=("blip-vqa",), check=True))


def test_shards_where_there_is_no_single_file(monkeypatch):
    files = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
             "pytorch_model.bin.index.json", "training_args.bin"]  # fmt: skip
    hub(monkeypatch, dict.fromkeys(files, b""))
    assert hub_files(Source("a/b", ("config.json",), True)) == files[:4]
    words = Source("a/b", ("config.json",), any_of=("chat_template.json", "chat_template.jinja"))
    hub(monkeypatch, dict.fromkeys([*files, "chat_template.jinja", "vocab.json"], b""))
    assert hub_files(words) == ["config.json", "chat_template.jinja"]
    hub(monkeypatch, {"config.json": b""})
    with pytest.raises(FileNotFoundError, match="a/b has no weights that transformers reads"):
        hub_files(Source("a/b", ("config.json",), True))


def test_a_head_comes_with_its_checksum(place, monkeypatch):
    answers = []
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(answers.pop(0)))
    answers[:] = [b"cut"]
    with pytest.raises(ValueError, match=r"sa_0_4_vit_l_14_linear.pth came with another checksum"):
        download(AESTHETIC_V1)
    assert not list(place.rglob("*.pth"))
    content = b"tensors"
    right = Source(
        "a/b", ("head.pth",), url="https://x", sha256=hashlib.sha256(content).hexdigest()
    )
    short = Source(right.repo, right.files, url=right.url, sha256="0" * 8)  # in a file's own name
    answers[:] = [content]
    with pytest.raises(ValueError, match="another checksum than 00000000"):
        download(short)
    answers[:] = [content]
    assert (download(right) / "head.pth").read_bytes() == content
    assert "ok " in check([right], only_present=False)
    first = Source(right.repo, right.files, url=right.url, sha256=(right.sha256 or "")[:8])
    assert "ok " in check([first], only_present=False)


def test_a_server_that_does_not_answer_is_one_sentence(place, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            "huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}"
        )
        assert main(["fetch", "clip"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("align: openai/clip-vit-large-patch14 could not be fetched (")
    assert "refused" in said
    assert said.count("\n") == 1


def test_no_network_is_one_sentence(place, monkeypatch, capsys):
    def down(*args, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", down)
    assert main(["fetch", "clip"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("align: openai/clip-vit-large-patch14 could not be fetched (no route")
    assert said.count("\n") == 1


def test_command_lists_and_checks(place, capsys):
    assert main(["fetch", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*published(), *SETS))
    assert "sha256 21dd590f" in listed
    assert main(["fetch", "--check"]) == 0
    assert "none of the published weights are on this machine" in capsys.readouterr().out
    assert main(["fetch"]) == 2
    assert main(["fetch", "--list", "clip"]) == 2
    states = {one.name: one.installed for one in list_rewards()}
    assert not states["hps"]
    assert states["jpeg"]


def test_digests(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert digest(path, git=True) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest(path).startswith("5891b5b522d5df086d0ff0b1")
