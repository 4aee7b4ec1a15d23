"""README, changelog and contributor's page agree with the code."""

import re

import pytest

from tesseral.scripts.main import COMMANDS

PAGES = ["README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_exist(repo_root, page):
    text = (repo_root / page).read_text()
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
    inline = re.findall(r"`(tesseral [a-z].*?)`", text)
    lines = [line for block in blocks for line in block.splitlines()] + inline
    named = {m[1] for line in lines if (m := re.match(r"\$? ?tesseral ([a-z]+)", line.strip()))}
    assert named or page != "README.md"
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(repo_root, page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (repo_root / page).read_text())
    links += re.findall(r'src="(?!https?://)([^"]+)"', (repo_root / page).read_text())
    missing = [link for link in links if not (repo_root / link).exists()]
    assert missing == []


def test_named_make_targets_exist(repo_root):
    targets = set(re.findall(r"^([a-z]+):", (repo_root / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z]+)\b`", (repo_root / page).read_text())) <= targets


def test_changelog_has_unreleased_and_known_gaps(repo_root):
    text = (repo_root / "CHANGELOG.md").read_text()
    assert text.index("## Unreleased") < text.index("### Known gaps")


def test_constraints_pin_every_core_package(repo_root):
    """A newcomer's install resolves to the tested versions only when each direct requirement is pinned."""
    pinned = {re.sub(r"[-_.]+", "-", x.split("==")[0].lower()) for x in _lines(repo_root / "constraints.txt")}
    core = re.search(r"^CORE = \[(.*?)^\]", (repo_root / "setup.py").read_text(), re.S | re.M)
    assert core is not None
    names = re.findall(r'"([A-Za-z0-9_-]+)[><=]', core[1])
    assert names and {n.lower() for n in names} <= pinned


def _lines(path) -> list[str]:
    """Lines that are not comments."""
    return [x for x in path.read_text().splitlines() if "==" in x and not x.startswith("#")]
