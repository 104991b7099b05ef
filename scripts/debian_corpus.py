"""Fetch the source archives of the pre-training corpus with the ordinary Debian package client.

    python scripts/debian_corpus.py corpus/ --exclude labelled.parquet [--exclude ...]

Packages are those of scripts/debian_corpus.txt. A package whose name is that of a project in one of the `--exclude`
tables (column `project` or `family`) is refused, so that a split by project stays honest. Nothing of the system is
changed: package lists and archives go to the given folder, where `archives.json` records names, versions, sizes and
digests. Archives that are there already are not fetched again. Needs apt-get, with a Debian release as its source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

PACKAGES = Path(__file__).with_suffix(".txt")
_ARCHIVE = re.compile(r"(\.orig(-[\w-]+)?|\.debian)?\.tar\.\w+$")


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    names = [line for line in PACKAGES.read_text().split("\n") if line and not line.startswith("#")]
    wanted = _without_known_projects(names, _projects(arguments.exclude))
    client = _client(folder)
    subprocess.run([*client, "-qq", "update"], check=True)
    for name in wanted:
        command = [*client, "-qq", "--download-only", "source", name]
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if fetched.returncode:  # a mirror may lack some; the record tells what there is
            print(f"not whole: {name}: {fetched.stderr.strip().splitlines()[-1]}")
    record = [_described(path) for path in sorted(folder.iterdir()) if _ARCHIVE.search(path.name)]
    (folder / "archives.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record)} archives, {sum(int(one['bytes']) for one in record):,} bytes in {folder}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the archives go")
    parser.add_argument("--exclude", type=Path, action="append", default=[], help="parquet file of labelled functions")
    return parser.parse_args()


def _projects(tables: Iterable[Path]) -> set[str]:
    from pyarrow.parquet import read_table

    names: set[str] = set()
    for path in tables:
        table = read_table(path)
        for column in {"project", "family"} & set(table.column_names):
            names |= {name for name in table.column(column).unique().to_pylist() if name}
    return {_plain(name) for name in names}


def _without_known_projects(packages: Iterable[str], projects: set[str]) -> list[str]:
    """Leave out packages of labelled projects and say so; `linux-2.6`, `Linux` and `linux5.0` are one name."""
    kept = []
    for package in packages:
        if _plain(package) in projects:
            print(f"left out: {package} is a project of the labelled data")
        else:
            kept.append(package)
    return kept


def _plain(name: str) -> str:
    letters = re.sub(r"[^a-z]", "", re.sub(r"[-\d.+]*$", "", name.lower()))
    return letters.removeprefix("lib") or letters


def _client(folder: Path) -> list[str]:
    """apt-get with lists of its own, made from the system's by turning binary sources into source ones."""
    state = (folder / ".apt").resolve()
    lists = state / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    parts = state / "sources.list.d"
    parts.mkdir(exist_ok=True)
    for source in sorted(Path("/etc/apt").rglob("*.sources")):
        text = source.read_text()
        if "debian" in text:
            (parts / source.name).write_text(re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE))
    (state / "sources.list").write_text("")
    for source in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
        if source.exists() and "/debian" in source.read_text():
            text = re.sub(r"^deb\s", "deb-src ", source.read_text(), flags=re.MULTILINE)
            (parts / source.with_suffix(".list").name).write_text(text)
    options: dict[str, object] = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": parts,
        "Dir::State::lists": lists,
        "APT::Get::List-Cleanup": "0",
        "APT::Sandbox::User": "root",
    }
    return ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]


def _described(path: Path) -> dict[str, str | int]:
    package, _, rest = path.name.partition("_")
    version = _ARCHIVE.sub("", rest)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "package": package, "version": version, "bytes": path.stat().st_size, "sha256": digest}


if __name__ == "__main__":
    main()
