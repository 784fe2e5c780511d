"""Makes a checkout ready to be built for a package index. The release workflow runs it: nobody else needs to.

    python .github/release.py TAG URL

TAG has to be the version, with a `v` before it, and CHANGELOG.md has to have that version with its date. URL is
the repository's, which only the workflow knows: it becomes the project's, and by it the README's links lead from
the index to the files of that tag.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Where Markdown and HTML name another place.
LINK = re.compile(r"""(?P<before>\]\(|\b(?:src|href|srcset)=")(?P<target>[^)"\s]+)""")
IMAGE = re.compile(r"\.(?:svg|png|jpe?g|gif|webp)$")


def check(version: str, tag: str, changelog: str) -> None:
    """Whether this is what is to be published: it can't be taken back."""
    if tag != f"v{version}":
        sys.exit(f"The tag is {tag}, and pyproject.toml has the version {version}: they have to be the same.")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no section `## {version} (YYYY-MM-DD)`. Put the release's day there.")


def with_urls(project: str, url: str) -> str:
    """pyproject.toml with the addresses that an index shows."""
    urls = {
        "Homepage": url,
        "Documentation": f"{url}/tree/HEAD/docs",
        "Changelog": f"{url}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    return f"{project}\n[project.urls]\n{lines}"


def with_whole_links(readme: str, url: str, tag: str) -> str:
    """A README whose relative links, which lead nowhere on an index, lead to the tag's files."""

    def whole(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"[a-z]+:", target):
            return link[0]
        if target.startswith("#"):
            target = f"README.md{target}"
        kind = "raw" if IMAGE.search(target) else "blob"
        return f"{link['before']}{url}/{kind}/{tag}/{target}"

    return LINK.sub(whole, readme)


def main(tag: str, url: str) -> None:
    project, readme = ROOT / "pyproject.toml", ROOT / "README.md"
    text = project.read_text(encoding="utf-8")
    check(tomllib.loads(text)["project"]["version"], tag, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    project.write_text(with_urls(text, url), encoding="utf-8")
    readme.write_text(with_whole_links(readme.read_text(encoding="utf-8"), url, tag), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
