"""Phrases that the style guide replaces, and that codespell cannot find because they are several words."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kvq_batch", "cluster", "docs", "jobs", "benchmarks", "research", "tests")
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml"}
PHRASES = {
    r"(?<![A-Za-z])[Tt]old(?![a-z])": "reported, logged, printed, sent",
    r"\b[Tt]ells? (of|what|how|whether|apart|who|why|where)\b": "reports, shows, says",
    r"(?<![A-Za-z])[Ss]tands?[ _](in|for|beside|there|as|below|above|here|under|together|over|still|out|at)\b": (
        "is, is stored in, is listed in"
    ),
    r"(?<![A-Za-z])[Ss]tands?_": "is, is stored in, is listed in",
    r"\bgoes on\b": "continues, resumes",
    r"\bin vain\b": "wasted",
    r"\bfor good\b": "permanently",
    r"\btaken back\b": "preempted",
    r"\brefused by name\b": "rejected with an error that names it",
    r"\bheld against\b": "compared with",
    r"\bso many\b": "n, or a number",
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer\b|more\b|later\b|larger\b|less\b|one\b)[`\"']?\w+": "is not a",
    r"(?<![a-z])(?<!there_)(is|are)_no_": "is not a",
    r"\b[Tt]his module (does not|knows|computes no|opens no|reads no|writes no|holds no|touches no)": "nothing",
}


def sources() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return [*sorted(files), *sorted(ROOT.glob("*.md"))]


def test_texts_use_no_replaced_phrase() -> None:
    found = []
    for path in sources():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)}:{number}: {match[0]!r}, write: {better}"
                for phrase, better in PHRASES.items()
                if (match := re.search(phrase, line))
            ]
    assert not found, f"{len(found)} phrases:\n" + "\n".join(found)
