"""Where a model came from: the commit, whether files differ from it, and that a stranger's git directory runs nothing."""

import subprocess

import pytest

from converters.provenance import Checkout, checkout_of


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(folder, *options):
    """A repository with two files; in one of its folders is the model."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "net.onnx").write_bytes(b"a model")
    (folder / "notes.txt").write_text("one\n")
    git(folder, "init", "-q", *options)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "HEAD")


def touch_later(folder):
    """Change when a file was written: only its content tells that it is the same."""
    (folder / "notes.txt").write_bytes((folder / "notes.txt").read_bytes())


@pytest.mark.parametrize("options", [(), ("--object-format=sha256",)], ids=["sha1", "sha256"])
def test_what_is_checked_out_is_told(tmp_path, options):
    commit = committed(tmp_path, *options)
    models = tmp_path / "models"
    assert checkout_of(models) == Checkout(commit, is_dirty=False)
    touch_later(tmp_path)
    (models / "new.txt").write_text("not tracked")
    assert checkout_of(models) == Checkout(commit, is_dirty=False)
    (tmp_path / "notes.txt").write_text("two\n")
    assert checkout_of(models) == Checkout(commit, is_dirty=True)
    git(tmp_path, "add", "notes.txt")
    assert checkout_of(models) == Checkout(commit, is_dirty=True)


def test_another_working_tree_of_the_same_repository_is_told(tmp_path):
    commit = committed(tmp_path / "one")
    git(tmp_path / "one", "worktree", "add", "-q", str(tmp_path / "two"))
    assert checkout_of(tmp_path / "two") == Checkout(commit, is_dirty=False)
    (tmp_path / "two" / "notes.txt").unlink()
    assert checkout_of(tmp_path / "two") == Checkout(commit, is_dirty=True)
    assert checkout_of(tmp_path / "one") == Checkout(commit, is_dirty=False)


@pytest.mark.parametrize(
    ("words", "is_dirty"),
    [
        (("update-index", "--split-index"), False),
        (("config", "core.filemode", "false"), False),
        (("config", "core.filemode", "true"), True),
    ],
)
def test_how_a_repository_is_stored_is_respected(tmp_path, words, is_dirty):
    commit = committed(tmp_path)
    git(tmp_path, *words)
    if "core.filemode" in words:
        (tmp_path / "notes.txt").chmod(0o755)
    assert checkout_of(tmp_path) == Checkout(commit, is_dirty)


def test_a_folder_in_no_checkout_says_nothing(tmp_path):
    assert checkout_of(tmp_path) == Checkout("", is_dirty=False)


@pytest.mark.parametrize("trap", ["fsmonitor", "clean", "process", "hook", "transport", "submodule"])
def test_nothing_that_a_git_directory_configures_is_run(tmp_path, trap):
    folder, ran = tmp_path / "unpacked", tmp_path / "ran"
    commit = committed(folder)
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n: > {ran}\ncat\n")
    script.chmod(0o755)
    match trap:
        case "fsmonitor":
            git(folder, "config", "core.fsmonitor", str(script))
        case "clean" | "process":
            git(folder, "config", f"filter.trap.{trap}", str(script))
            (folder / ".gitattributes").write_text("* filter=trap\n")
        case "hook":
            (folder / ".git" / "hooks").mkdir(exist_ok=True)
            (folder / ".git" / "hooks" / "post-index-change").write_bytes(script.read_bytes())
            (folder / ".git" / "hooks" / "post-index-change").chmod(0o755)
        case "transport":
            tree = git(folder, "rev-parse", "HEAD^{tree}")
            (folder / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
            for name, value in (
                ("repositoryformatversion", "1"), ("sshCommand", str(script)),
            ):  # fmt: skip
                git(folder, "config", f"core.{name}", value)
            git(folder, "config", "extensions.partialClone", "far")
            git(folder, "config", "remote.far.promisor", "true")
            git(folder, "config", "remote.far.url", "ssh://nobody@localhost/none")
        case "submodule":
            inner = committed(folder / "inner")
            git(folder, "update-index", "--add", "--cacheinfo", f"160000,{inner},inner")
            git(folder, "commit", "-q", "-m", "two")
            commit = git(folder, "rev-parse", "HEAD")
            git(folder / "inner", "config", "core.fsmonitor", str(script))
    touch_later(folder)
    assert checkout_of(folder / "models").commit == commit
    assert not ran.exists()
